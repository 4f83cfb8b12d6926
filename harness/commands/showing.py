"""A transcript as people read it while it comes: what stands is solid, what may change is dim."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from harness.client import Heard


class Partials:
    """Draws the text in place on a terminal, and nothing elsewhere. The end of a text that does not fit is what is seen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Any = None

    def __enter__(self) -> Partials:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, stable: str, tentative: str) -> None:
        """Called for every change."""
        if self._live is not None:
            self._live.update(self._picture(stable.lstrip(), tentative), refresh=True)

    def _picture(self, stable: str, tentative: str) -> Text:
        from rich.text import Text

        room = max(1, self._console.width * (self._console.height - 2))
        tentative = tentative[-room:]
        cut = len(stable) + len(tentative) - room
        return Text.assemble(stable if cut <= 0 else f"…{stable[cut + 1 :]}", (tentative, "dim"))


def metrics(heard: Heard) -> str:
    """One line."""
    record = heard.record
    parts = [f"{record.audio_seconds:.1f} s of audio", f"{heard.words} words"]
    if heard.first_token_seconds is not None:
        parts.append(f"first token {heard.first_token_seconds:.2f} s")
    if heard.time_to_final_seconds is not None:
        parts.append(f"final {1000 * heard.time_to_final_seconds:.0f} ms after the end")
    if heard.real_time_factor is not None:
        parts.append(f"real-time factor {heard.real_time_factor:.2f}")
    dropped = heard.as_json()["dropped_seconds"]
    if dropped:
        parts.append(f"the server dropped {dropped:.1f} s of audio")
    return ", ".join(parts)
