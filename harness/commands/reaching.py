"""The options of commands that send audio to one server, and the server they name: a target, or one that is started for the command."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.errors import UsageError

if TYPE_CHECKING:
    from harness.replay.carrying import Destination

Target = Annotated[
    str | None,
    typer.Option(help="Use this server (ws://, http:// or grpc://host:port).", show_default="one is started"),
]
Protocol = Annotated[str, typer.Option(help="How to speak to the server: 'earmark drivers' lists all.")]
Model = Annotated[str | None, typer.Option(help="Model to ask for.", show_default="what the server serves")]
DelayMs = Annotated[int | None, typer.Option(help="Transcription delay.", show_default="the server's")]
Language = Annotated[
    str | None, typer.Option(help="Of the audio, for protocols that carry one.", show_default="the server finds out")
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="Key for the target.", show_default="EARMARK_API_KEY, or what 'earmark drivers NAME' says"),
]
Engine = Annotated[str, typer.Option(help="Engine of the server that is started: auto, sphinx, scripted, ...")]
ServerOption = Annotated[
    list[str] | None,
    typer.Option(help="Passed to the server that is started, e.g. --server-option=--sphinx-workers=1."),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say."""

    target: str | None = None
    protocol: str = "yap"
    model: str | None = None
    delay_ms: int | None = None
    language: str | None = None
    api_key: str | None = None
    engine: str = "auto"
    driver_options: tuple[tuple[str, str], ...] = ()
    server_options: tuple[str, ...] = ()
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Reached:
    """Where audio goes, in packets of what length."""

    destination: Destination
    packet_ms: int


@contextlib.contextmanager
def reach(asked: Asked, say: Callable[[str], None]) -> Iterator[Reached]:
    """The server, for as long as it is wanted.

    Raises:
        UsageError: options that exclude each other.
        BenchError: the target is no address, or the driver cannot do what is asked.
        ServerError: the server did not start.
    """
    from harness import bench, drivers

    driver = drivers.find(asked.protocol)
    target = asked.target or driver.home
    if target is not None and asked.server_options:
        raise UsageError("--server-option is for the server that is started; it cannot be combined with --target")
    options, language = dict(asked.driver_options), asked.language
    if language is not None:
        if "language" not in driver.options:
            raise UsageError(f"--language {language}: the {driver.name} protocol carries no language")
        options.setdefault("language", language)
    plan = bench.Plan(
        concurrencies=(1,),
        delays_ms=(asked.delay_ms,),
        speed=asked.speed,
        protocol=asked.protocol,
        engine=asked.engine,
        target=target,
        api_key=asked.api_key,
        model=asked.model,
        driver_options=options,
        server_options=("--unlimited", *asked.server_options),
    )
    bench.check_target(plan)
    with (
        tempfile.TemporaryDirectory(prefix="earmark-") as folder,
        bench.reached(plan, Path(folder), bench.Watcher(say)) as measured,
    ):
        yield Reached(bench.destination(plan, measured, asked.delay_ms, language), plan.packet_ms)
