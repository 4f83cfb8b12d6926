"""The options that say how load is made, shared by the commands that make it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.bench import Load

Arrival = Annotated[
    str,
    typer.Option(
        help="How streams come: closed (always --concurrency of them), poisson:PER_SECOND, fixed:PER_SECOND, "
        "ramp:FROM-TO:SECONDS, or file:PATH (CSV with start_seconds and, if wanted, utterance)."
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        help="Begin streams for so long, utterances again and again.", show_default="each utterance --repeat times"
    ),
]
ThinkSeconds = Annotated[
    float, typer.Option(help="Mean silence of a lane between two utterances, exponentially drawn.", min=0)
]
DutyCycle = Annotated[
    float | None, typer.Option(help="Part of the time that a lane speaks, instead of --think-seconds.")
]
JitterMs = Annotated[float, typer.Option(help="Hold each packet for up to so long, uniformly drawn.", min=0)]
Burst = Annotated[int, typer.Option(help="Let packets leave in groups of so many.", min=1)]
Stall = Annotated[
    str,
    typer.Option(
        help="Let nothing leave a stream for a while: 2@10 (2 s from second 10 on) or 2/30 (2 s in every 30)."
    ),
]
PerConnection = Annotated[
    int, typer.Option(help="Utterances of a lane on one connection before it reconnects; 0: never reconnect.", min=0)
]
Retries = Annotated[
    int, typer.Option(help="How often a refused or failed connection is tried again; counted in the run.", min=0)
]
Generators = Annotated[int, typer.Option(help="Processes that make the load, on one timeline.", min=1)]


def load_of(
    *,
    arrival: str = "closed",
    seconds: float | None = None,
    think_seconds: float = 0.0,
    duty_cycle: float | None = None,
    jitter_ms: float = 0.0,
    burst: int = 1,
    stall: str = "",
    per_connection: int = 1,
    retries: int = 0,
    generators: int = 1,
) -> Load:
    """The load that the options ask for.

    Raises:
        BenchError: an option that makes no sense, with what is expected.
    """
    from harness.arrivals import ArrivalError, parse
    from harness.bench import BenchError, Load
    from harness.impairment import Impairment, ImpairmentError, parse_stalls

    try:
        return Load(
            arrivals=parse(arrival),
            seconds=seconds,
            think_seconds=think_seconds,
            duty_cycle=duty_cycle,
            impairment=Impairment(jitter_ms, burst, parse_stalls(stall)),
            per_connection=per_connection,
            retries=retries,
            generators=generators,
        )
    except (ArrivalError, ImpairmentError) as error:
        raise BenchError(str(error)) from None
