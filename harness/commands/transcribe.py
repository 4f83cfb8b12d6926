"""``earmark transcribe``: recordings to text, as it comes, with what it took."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.drivers import DriverOption, options_of
from harness.commands.errors import UsageError
from harness.commands.reaching import (
    ApiKey,
    Asked,
    DelayMs,
    Engine,
    Language,
    Model,
    Protocol,
    Reached,
    ServerOption,
    Target,
    reach,
)
from harness.commands.terminal import Terminal

if TYPE_CHECKING:
    from harness.client import Heard

SPEEDS = {"real": 1.0, "max": math.inf}


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings, of any common format.", metavar="FILE...")],
    target: Target = None,
    protocol: Protocol = "yap",
    model: Model = None,
    delay_ms: DelayMs = None,
    language: Language = None,
    api_key: ApiKey = None,
    speed: Annotated[
        str, typer.Option(help="real: at the pace of speech; max: as fast as the server takes it.")
    ] = "real",
    driver_option: DriverOption = None,
    engine: Engine = "auto",
    server_option: ServerOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per file and line, no partial texts.")
    ] = False,
) -> int:
    """Transcribe recordings with a server that is started for it, or with --target.

    Text appears as it comes: what stands is solid, what may still change is dim. Text goes to standard output, all else to standard
    error. Exit codes: 0 all files have a transcript, 3 some have none, 130 interrupted.
    """
    if speed not in SPEEDS:
        raise UsageError(f"--speed {speed}: real or max is expected")
    asked = Asked(
        target,
        protocol,
        model,
        delay_ms,
        language,
        api_key,
        engine,
        tuple(options_of(driver_option or []).items()),
        tuple(server_option or ()),
        SPEEDS[speed],
    )
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file")
    terminal = Terminal()
    with reach(asked, terminal.say) as reached:
        return _Transcribing(reached, terminal, asked.speed, as_json=as_json, several=len(files) > 1).all(files)


class _Transcribing:
    """Files one after the other."""

    def __init__(self, reached: Reached, terminal: Terminal, speed: float, *, as_json: bool, several: bool) -> None:
        self._reached, self._terminal, self._speed = reached, terminal, speed
        self._as_json, self._several = as_json, several

    def all(self, files: Sequence[Path]) -> int:
        """The exit code."""
        from harness.audio import AudioError, decode
        from harness.replay.loop import new_event_loop

        done: list[Heard] = []
        failed = 0
        for file in files:
            try:
                pcm = decode(file)
            except AudioError as error:
                self._complain(file, str(error))
                failed += 1
                continue
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                heard = runner.run(self._one(file, pcm))
            self._tell(file, heard)
            done.append(heard)
            failed += not heard.ok
        if len(files) > 1:
            self._terminal.say(_total(done, failed))
        return 3 if failed else 0

    async def _one(self, file: Path, pcm: bytes) -> Heard:
        from harness.client import transcribe as send
        from harness.commands.showing import Partials

        with Partials(self._terminal.out) as partials:
            return await send(
                file.name,
                pcm,
                self._reached.destination,
                packet_ms=self._reached.packet_ms,
                speed=self._speed,
                shown=None if self._as_json else partials.show,
            )

    def _tell(self, file: Path, heard: Heard) -> None:
        from harness.commands.showing import metrics

        if self._as_json:
            print(json.dumps({"file": str(file), **heard.as_json()}), flush=True)
            return
        if heard.text or heard.ok:
            shown = f"{file}: {heard.text}" if self._several else heard.text
            self._terminal.out.print(shown, soft_wrap=True, markup=False)
        if heard.ok:
            self._terminal.say(metrics(heard))
        else:
            print(f"{file}: {heard.record.error}", file=sys.stderr)

    def _complain(self, file: Path, why: str) -> None:
        if self._as_json:
            print(json.dumps({"file": str(file), "outcome": "failed", "error": why}), flush=True)
        print(f"earmark: {why}", file=sys.stderr)


def _total(done: Sequence[Heard], failed: int) -> str:
    """All files in one line."""
    fine = [heard for heard in done if heard.ok]
    seconds = sum(heard.record.audio_seconds for heard in fine)
    took = sum((heard.real_time_factor or 0.0) * heard.record.audio_seconds for heard in fine)
    finals = [heard.time_to_final_seconds for heard in fine if heard.time_to_final_seconds is not None]
    firsts = [heard.first_token_seconds for heard in fine if heard.first_token_seconds is not None]
    parts = [f"in total: {len(fine)} files, {failed} failed", f"{seconds:.1f} s of audio"]
    parts.append(f"{sum(heard.words for heard in fine)} words")
    if firsts:
        parts.append(f"first token at most {max(firsts):.2f} s")
    if finals:
        parts.append(f"final at most {1000 * max(finals):.0f} ms after the end")
    if seconds:
        parts.append(f"real-time factor {took / seconds:.2f}")
    return ", ".join(parts)
