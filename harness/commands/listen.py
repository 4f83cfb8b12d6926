"""``earmark listen``: what is said into a microphone, as text, while it is said."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
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
    from harness.sources import Source


def listen(
    target: Target = None,
    protocol: Protocol = "yap",
    model: Model = None,
    delay_ms: DelayMs = None,
    language: Language = None,
    api_key: ApiKey = None,
    device: Annotated[
        str | None, typer.Option(help="Number or part of the name of a microphone.", show_default="the system's")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="Say which microphones there are.")] = False,
    wav: Annotated[
        Path | None, typer.Option(help="Play this recording as if it were spoken now.", metavar="FILE")
    ] = None,
    driver_option: DriverOption = None,
    engine: Engine = "auto",
    server_option: ServerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, no partial texts.")] = False,
) -> int:
    """Transcribe a microphone with a server that is started for it, or with --target.

    Ctrl+C ends the utterance and waits for its transcript; a second one gives up. Needs the extra 'mic'.
    """
    from harness.sources import devices, sound_library

    if list_devices:
        print("\n".join(devices()))
        return 0
    if wav is None:
        sound_library()  # before a server is started for nothing
    elif device is not None:
        raise UsageError("--device and --wav are two sources: give one of them")
    elif not wav.is_file():
        raise UsageError(f"{wav}: no such file")
    options = tuple(options_of(driver_option or []).items())
    asked = Asked(target, protocol, model, delay_ms, language, api_key, engine, options, tuple(server_option or ()))
    terminal = Terminal()
    with reach(asked, terminal.say) as reached, asyncio.Runner() as runner:
        heard = runner.run(_listen(reached, terminal, device, wav, as_json=as_json))
    return _tell(heard, terminal, as_json=as_json)


async def _listen(
    reached: Reached, terminal: Terminal, device: str | None, wav: Path | None, *, as_json: bool
) -> Heard:
    from harness.client import listen as hear
    from harness.commands.showing import Partials
    from harness.sources import Microphone, Played

    source: Source
    if wav is None:
        source = Microphone(device)
        terminal.say(f"listening to {source.name}; Ctrl+C ends it")
    else:
        source = Played(wav)
        terminal.say(f"listening to {wav}; Ctrl+C ends it")
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    ended = False

    def interrupted() -> None:
        nonlocal ended
        if ended:
            task.cancel()
        ended = True
        source.stop()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        with Partials(terminal.out) as partials:
            heard = await hear(
                source,
                reached.destination,
                packet_ms=reached.packet_ms,
                shown=None if as_json else partials.show,
            )
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if source.lost:
        terminal.say(f"{source.lost} times the microphone's audio was not taken in time, and is missing")
    return heard


def _tell(heard: Heard, terminal: Terminal, *, as_json: bool) -> int:
    from harness.commands.showing import metrics

    if as_json:
        print(json.dumps(heard.as_json()), flush=True)
    elif heard.text or heard.ok:
        terminal.out.print(heard.text, soft_wrap=True, markup=False)
    if not heard.ok:
        print(f"earmark: {heard.record.error}", file=sys.stderr)
        return 3
    terminal.say(metrics(heard))
    return 0
