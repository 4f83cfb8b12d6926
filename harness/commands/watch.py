"""``earmark watch``: a server's figures and a running bench, on the terminal, as they change."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from harness.commands.errors import UsageError
from harness.commands.folders import expand

if TYPE_CHECKING:
    import httpx
    from rich.console import Console, RenderableType

    from harness.dashboard import RunView
    from harness.plane import Plane
    from harness.scrape import Watched

REPORTS = Path("reports")
UNDER_WAY = ("runs/*", "runs/*/*", "studies/*/runs/*", "capacity/*/runs/*")  # where runs are written
DEFAULT = "http://127.0.0.1:8000"
ANSWER_SECONDS = 5.0
ABANDONED_SECONDS = 60.0  # a run is told of every second
LARGEST_ANSWER_BYTES = 8 * 1024 * 1024
FAILED = 3


def watch(
    url: Annotated[
        str | None,
        typer.Argument(
            help="Server: host:port, or an http or ws URL; /metrics unless it names a path.",
            show_default=f"the running bench's, else {DEFAULT}",
            metavar="[URL]",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="A run's folder, or one of runs: its newest.", show_default="the newest being written"),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5, max=60)] = 2.0,
    window: Annotated[float, typer.Option(help="Seconds that rates and latencies are over.", min=1, max=600)] = 30.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, print one frame, end: 0, or 3 without an answer.")
    ] = False,
    width: Annotated[
        int | None, typer.Option(help="Characters of a line.", show_default="the terminal's", min=40, max=400)
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as a bearer token.", show_default="EARMARK_API_KEY")] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            help="Operations plane of the server, e.g. http://127.0.0.1:8001: shows its machine, sessions and errors too; its /metrics "
            "unless URL is given. Token: STT_OBSERVABILITY_TOKEN.",
            metavar="URL",
        ),
    ] = None,
) -> int:
    """Show what a server says of itself at /metrics, and how the running bench stands, until interrupted."""
    import httpx
    from rich.console import Console

    from harness.scrape import Watched

    console = Console(width=width, highlight=False)
    if width is None and not console.is_terminal:
        console = Console(width=80, highlight=False)
    plane = metrics_address(ops).removesuffix("/metrics") if ops else None
    address = metrics_address(url) if url else f"{plane}/metrics" if plane else None
    key = api_key or os.environ.get("EARMARK_API_KEY")
    token = os.environ.get("STT_OBSERVABILITY_TOKEN")
    headers = (
        _bearer(key) if key and url else _bearer(token) if token and plane and not url else {}
    )  # only to whom they are meant for
    with (
        httpx.Client(headers=headers, timeout=ANSWER_SECONDS, trust_env=False) as client,
        httpx.Client(headers=_bearer(token) if token else {}, timeout=ANSWER_SECONDS, trust_env=False) as operator,
    ):
        screen = _Screen(client, console, Watched(window), address, run, interval, (operator, plane))
        if once:
            screen.look()
            time.sleep(interval)
            answered = screen.look()
            if answered and not screen.has_rates:  # the bench had no server yet
                time.sleep(interval)
                answered = screen.look()
            console.print(screen.picture())
            return 0 if answered else FAILED
        try:
            screen.show()
        except KeyboardInterrupt:
            return 0
    return 0


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def metrics_address(url: str) -> str:
    """Where a server's metrics are.

    Raises:
        UsageError: it is no address.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    try:
        usable = scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"{url!r} is no address of a server; e.g. 127.0.0.1:8000 or http://host:8000/metrics")
    plain = parts.path in ("", "/") or parts.scheme in ("ws", "wss")  # the path of a socket is none of metrics
    return f"{scheme}://{parts.netloc}{'/metrics' if plain else parts.path}"


class _Screen:
    """What is looked at, and the picture of it."""

    def __init__(
        self,
        client: httpx.Client,
        console: Console,
        watched: Watched,
        address: str | None,
        run: Path | None,
        interval_seconds: float,
        plane: tuple[httpx.Client, str | None],
    ) -> None:
        self._client, self._console, self._watched = client, console, watched
        self._named, self._address, self._run, self._interval_seconds = address, address, run, interval_seconds
        self._operator, self._plane_url = plane
        self._plane: Plane | None = None
        self._view: RunView | None = None

    def show(self) -> None:
        """Draw until interrupted: in place on a terminal, one frame after the other elsewhere."""
        from rich.live import Live

        if not self._console.is_terminal:
            while True:
                self.look()
                self._console.print(self.picture())
                time.sleep(self._interval_seconds)
        with Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                self.look()
                live.update(self.picture(), refresh=True)
                time.sleep(self._interval_seconds)

    def look(self) -> bool:
        """Ask the server once and read the run's folder; whether the server answered."""
        from harness.scrape import Watched, parse

        self._view = run_view(self._run, time.time())
        if self._plane_url is not None:
            self._plane = _look_at_plane(self._operator, self._plane_url)
        if self._named is None and self._view is not None and self._view.standing and not self._view.standing.server:
            self._address = None  # a service, which has no metrics
            return True
        told = self._named or self._of_bench() or self._address or metrics_address(DEFAULT)
        if told != self._address:  # a bench has begun, with a server of its own
            self._address, self._watched = told, Watched(self._watched.window_seconds)
        now_seconds = time.monotonic()
        answer = _ask(self._client, told)
        if isinstance(answer, str):
            self._watched.failed(now_seconds, answer)
            return False
        try:
            self._watched.answered(parse(answer.decode("utf-8", "replace"), now_seconds))
        except ValueError:
            self._watched.failed(now_seconds, "what it answers is no Prometheus text")
            return False
        return True

    def _of_bench(self) -> str | None:
        """The metrics of the server that the running bench measures."""
        standing = self._view.standing if self._view else None
        return metrics_address(standing.server) if standing and standing.server else None

    @property
    def has_rates(self) -> bool:
        """Whether two answers of this server are known."""
        return self._watched.frame().window_seconds > 0

    def picture(self) -> RenderableType:
        """What is known now."""
        from harness.dashboard import draw
        from harness.scrape import Frame

        return draw(
            self._watched.frame() if self._address else Frame(),
            url=self._address or "",
            width=self._console.width,
            clock=datetime.now(),
            now_seconds=time.monotonic(),
            interval_seconds=self._interval_seconds,
            run=self._view,
            plane=self._plane,
            no_run=f"{self._run}: no run in it" if self._run else "no bench is under way here",
        )


def _look_at_plane(client: httpx.Client, url: str) -> Plane:
    from harness.plane import Metrics, Plane, System, read

    metrics, system = _ask(client, f"{url}/metrics.json"), _ask(client, f"{url}/system")
    return Plane(url, read(metrics, Metrics), read(system, System))


def _ask(client: httpx.Client, address: str) -> bytes | str:
    """The answer, or why there is none."""
    import httpx

    try:
        with client.stream("GET", address) as answer:
            if answer.status_code != 200:
                return f"it answers {answer.status_code} {answer.reason_phrase}".rstrip()
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > LARGEST_ANSWER_BYTES:
                    return f"its answer is larger than {LARGEST_ANSWER_BYTES >> 20} MiB"
            return bytes(body)
    except httpx.TimeoutException:
        return f"no answer within {ANSWER_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__


# ---- the run -----------------------------------------------------------------------------------------------------


def run_folder(named: Path | None, reports: Path = REPORTS) -> Path | None:
    """The run of that folder, or the newest in it; without one the newest that is being written anywhere under ``reports``."""
    if named is None:
        found = [path for place in UNDER_WAY for path in reports.glob(f"{place}/progress.json")]
        return max(found, key=_written, default=reports / "none").parent if found else None
    if (named / "run.json").exists():
        return named
    found = [path for pattern in ("*/progress.json", "*/run.json") for path in named.glob(pattern)]
    if not found and (named / "bench.json").exists():  # a bench's runs lie beside its folder
        found = [folder / "run.json" for folder in expand([named])]
    elif not found and "-bench-" in named.name:
        found = [path for path in named.parent.glob("*/run.json") if path.parent.name >= named.name[:16]]
    return max(found, key=_written).parent if found else None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it ended meanwhile
        return 0.0


def run_view(named: Path | None, now_epoch_seconds: float, reports: Path = REPORTS) -> RunView | None:
    """A run as its folder tells it at this moment; ``None`` where there is none."""
    from harness import store
    from harness.dashboard import RunView

    folder = run_folder(named, reports)
    if folder is None:
        return None
    found = store.read_standing(folder)
    if named is None and (found is None or now_epoch_seconds - found[1] > ABANDONED_SECONDS):
        return None  # whoever wrote it was killed
    try:
        run = store.read_run(folder)
    except store.StoreError:
        return RunView(folder.name)
    if found is not None:
        standing, written = found
        began = datetime.fromisoformat(run.created).timestamp()
        return RunView(folder.name, run.config, standing, now_epoch_seconds - written, now_epoch_seconds - began)
    return RunView(folder.name, run.config, complete=run.complete, result=_result(folder))


def _result(folder: Path) -> str:
    """The figures that matter of a scored run."""
    if not (folder / "scores.json").exists():
        return ""
    from harness.report.wording import percent_with_interval, seconds
    from harness.score import read_scores
    from harness.store import StoreError

    try:
        scores = read_scores(folder)
    except StoreError as error:
        return str(error)
    told = [f"{'valid' if scores.valid else 'INVALID'}; {scores.accuracy.headline.upper()} "
            f"{percent_with_interval(getattr(scores.accuracy, scores.accuracy.headline))}"]  # fmt: skip
    for name, label in (("word_emission_latency", "word latency"), ("time_to_final", "time to final")):
        if name in scores.latency and (value := scores.latency[name].p95.value) is not None:
            told.append(f"{label} p95 {seconds(value)}")
    return ", ".join(told)
