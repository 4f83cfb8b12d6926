"""What two answers of ``/metrics`` say, how it is drawn, and the command against servers that answer, do not, or answer nonsense."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from rich.cells import cell_len
from rich.console import Console

from harness import store
from harness.commands.errors import UsageError
from harness.commands.watch import metrics_address, run_folder, run_view, watch
from harness.dashboard import RunView, draw, short, sparkline
from harness.scrape import Frame, Watched, frame, parse
from harness.server_side import Between
from server.metrics import Metrics
from tests.harness.made_runs import Recipe, config

VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} TOKENS
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.02"} STEPS
vllm:time_to_first_token_seconds_bucket{le="0.04"} TOKENS
vllm:time_to_first_token_seconds_bucket{le="+Inf"} TOKENS
vllm:time_to_first_token_seconds_count TOKENS
vllm:time_to_first_token_seconds_sum 10.0
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3.221225472e+09
"""
FOREIGN = """\
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{le="0.1"} COUNT
http_request_duration_seconds_bucket{le="+Inf"} COUNT
http_request_duration_seconds_sum 1.0
"""


def said(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def figures(shown: Frame) -> dict[str, float | None]:
    return {figure.label: figure.value for figure in shown.figures}


def busy(metrics: Metrics) -> None:
    """Two seconds of eight streams."""
    metrics.connections_active.labels("yap").set(5)
    metrics.connections_active.labels("realtime").set(3)
    metrics.audio_seconds.labels("yap").inc(10)
    metrics.audio_seconds.labels("realtime").inc(6)
    metrics.errors.labels("yap", "overloaded").inc(3)
    metrics.engine.labels("waiting").set(2)
    for seconds in (0.22, 0.22, 0.45):
        metrics.first_token.labels("yap").observe(seconds)


def test_two_answers_say_what_happened_between_them() -> None:
    metrics = Metrics()
    metrics.audio_seconds.labels("yap").inc(1000)
    metrics.errors.labels("yap", "overloaded").inc(1)
    metrics.first_token.labels("yap").observe(20)
    before = parse(said(metrics), 100.0)
    busy(metrics)
    shown = frame(before, parse(said(metrics), 102.0))
    found = figures(shown)
    assert shown.window_seconds == 2.0
    assert (found["streams open"], found["waiting"], found["audio s per s"], found["errors"]) == (8, 2, 8, 3)
    assert next(figure.total for figure in shown.figures if figure.label == "errors") == 4
    assert (found["dropped audio"], found["turned away"]) == (0, 0)  # declared, never counted
    memory = found["memory"]
    assert memory is not None
    assert memory > 2**20
    (first,) = shown.latencies
    assert (first.label, first.over.count) == ("first token", 3)
    assert first.over.mean == pytest.approx((0.22 + 0.22 + 0.45) / 3)
    assert (first.over.quantile(0.5), first.over.quantile(0.95)) == (Between(0.2, 0.25), Between(0.4, 0.5))
    assert "final" in shown.quiet
    assert shown.missing == ()
    assert shown.reasons == (("errors: overloaded", 3.0),)


def test_vllm_is_told_in_its_own_names_and_what_it_does_not_say_is_said() -> None:
    answers = [
        parse(VLLM.replace("TOKENS", str(tokens)).replace("STEPS", str(tokens // 2)), float(at))
        for at, tokens in ((0, 100), (2, 300))
    ]
    shown = frame(*answers)
    found = figures(shown)
    assert (found["streams open"], found["waiting"], found["KV cache"], found["tokens per s"]) == (7, 1, 0.5, 100)
    assert found["memory"] == 3 * 2**30
    assert [(one.label, one.over.count, one.over.quantile(0.95)) for one in shown.latencies] == [
        ("step", 200, Between(0.02, 0.04))
    ]
    assert set(shown.missing) == {
        "audio s per s",
        "dropped audio",
        "errors",
        "turned away",
        "first token",
        "audio lag",
        "final",
    }
    assert not shown.foreign


def test_anybody_elses_histograms_are_shown_and_nothing_else_is_claimed() -> None:
    shown = frame(parse(FOREIGN.replace("COUNT", "1"), 0.0), parse(FOREIGN.replace("COUNT", "9"), 1.0))
    assert shown.foreign
    assert [(one.label, one.over.count) for one in shown.latencies] == [("http_request_duration", 8)]
    assert {"streams open", "memory", "first token"} <= set(shown.missing)
    assert not shown.figures


@pytest.mark.parametrize("text", ["", "<html>hello</html>", "# nothing", 'a{b="c" 1', "{}"])
def test_what_is_no_exposition_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        parse(text, 0.0)


def test_nothing_is_said_across_a_restart_or_a_gap() -> None:
    old, fresh = Metrics(), Metrics()
    watched = Watched(30)
    old.audio_seconds.labels("yap").inc(50)
    watched.answered(parse(said(old), 0.0))
    fresh.audio_seconds.labels("yap").inc(4)
    watched.answered(parse(said(fresh), 2.0))
    assert (watched.frame().window_seconds, watched.restarts) == (0.0, 1)
    watched.failed(4.0, "refused")
    watched.failed(6.0, "refused again")
    down = watched.frame()
    assert (down.down_since_seconds, down.down_because) == (4.0, "refused again")
    fresh.audio_seconds.labels("yap").inc(100)
    watched.answered(parse(said(fresh), 8.0))
    assert figures(watched.frame())["audio s per s"] is None
    fresh.audio_seconds.labels("yap").inc(2)
    watched.answered(parse(said(fresh), 10.0))
    assert figures(watched.frame())["audio s per s"] == 1.0
    assert watched.restarts == 1


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40))
def test_the_window_is_as_long_as_asked_and_counts_what_came_in_it(audio: list[int]) -> None:
    watched, text = Watched(10), "# TYPE earmark_audio_seconds counter\nearmark_audio_seconds_total {}\n"
    for number in range(len(audio)):
        watched.answered(parse(text.format(sum(audio[: number + 1])), 2.0 * number))
    shown = watched.frame()
    assert shown.window_seconds == min(10.0, 2.0 * (len(audio) - 1))
    inside = audio[1:][-5:]
    assert figures(shown)["audio s per s"] == pytest.approx(sum(inside) / shown.window_seconds)
    (past,) = (figure.past for figure in shown.figures)
    assert past == tuple(count / 2 for count in audio[1:])


# ---- the picture


def drawn(shown: Frame, width: int, run: RunView | None = None, no_run: str = "") -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    picture = draw(
        shown, url="http://127.0.0.1:8000/metrics", width=width, clock=datetime(2030, 1, 2, 3, 4, 30), now_seconds=130.0,
        interval_seconds=2.0, run=run, no_run=no_run,
    )  # fmt: skip
    with console.capture() as captured:
        console.print(picture)
    return captured.get().splitlines()


STANDING = store.Standing("ws://127.0.0.1:8000", 88, 8, 36, 1, 2, 412, 0.0312)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_figure_is_legible_at_any_width(width: int) -> None:
    metrics = Metrics()
    busy(metrics)
    watched = Watched(30)
    for second in range(8):
        watched.answered(parse(said(metrics), 120.0 + second))
        busy(metrics)
    run = RunView("20300102T030405Z-sphinx", config(Recipe()), STANDING, 0.5, 61.0)
    lines = drawn(watched.frame(), width, run)
    assert max(map(cell_len, lines)) <= width
    whole = " ".join(" ".join(lines).split())
    for told in ("streams open 8", "audio s per s 16", "21 of 24", "first token", "400–500", "why: errors: overloaded 21",
                 "37 of 88 in 61 s", "1 failed", "31.2 ms", "over 7 s"):  # fmt: skip
        assert told in whole, told
    assert ("p99" in whole) == (width >= 80)
    assert ("p50 p95" in whole and "200–250" in whole) == (width >= 60)
    assert "…" not in whole


def test_a_server_that_is_gone_is_told_with_since_when_and_the_run_all_the_same() -> None:
    run = RunView("the run", config(Recipe()), STANDING, 12.0, 61.0)
    whole = " ".join(drawn(Frame(down_since_seconds=100.0, down_because="refused"), 80, run))
    assert "no answer since 03:04:00 (30 s): refused; asked again every 2 s" in whole
    assert "nothing told for 12 s" in whole
    assert "streams open" not in whole


def test_the_first_answer_has_no_rates_yet() -> None:
    one = parse(said(Metrics()), 0.0)
    whole = " ".join(drawn(frame(one, one), 80, no_run="no bench is under way here"))
    assert "first answer" in whole
    assert "audio s per s …" in " ".join(whole.split())
    assert "no bench is under way here" in whole


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 7.25, 8.0, 999.4, 1234.5, 12345, 3_200_000)] == [
        "0", "7.25", "8", "999", "1234", "12.3k", "3.2M",
    ]  # fmt: skip


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=50), st.integers(1, 40))
def test_a_sparkline_has_a_character_for_each_of_the_newest_values(values: list[float | None], width: int) -> None:
    line, newest = sparkline(values, width), values[-width:]
    assert len(line) == len(newest)
    assert [character == " " for character in line] == [value is None for value in newest]
    known = [value for value in newest if value is not None]
    if known and max(known) > 0:
        assert line[newest.index(max(known))] == "█"


# ---- the command


def answering(answer: Callable[[], tuple[int, bytes]]) -> AbstractContextManager[str]:
    return answering_paths(lambda path, _: answer() if path == "/metrics" else (404, b""))


@contextmanager
def answering_paths(answer: Callable[[str, str], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers each path, and whoever brings which authorization."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_frame_has_the_rates_of_the_time_between_two_looks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metrics = Metrics()

    def answer() -> tuple[int, bytes]:
        busy(metrics)
        return 200, generate_latest(metrics.registry)

    with answering(answer) as address:
        assert watch(f"ws://{address}/v1/realtime", once=True, interval=0.05, window=30, run=tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "streams open 8" in shown
    assert "3 of 6" in shown  # errors of the second look, of both
    assert "no run in it" in shown


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(404, b"", "it answers 404"), (200, b"<html>", "no Prometheus text"), (200, b"\xff\x00", "no Prometheus text")],
)
def test_what_a_server_does_wrong_is_told_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, status: int, body: bytes, told: str
) -> None:
    with answering(lambda: (status, body)) as address:
        assert watch(address, once=True, interval=0.01, window=30, run=tmp_path) == 3
    assert told in " ".join(capsys.readouterr().out.split())


def test_a_server_that_is_not_there_is_told_and_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with answering(lambda: (200, b"")) as address:
        pass
    assert watch(address, once=True, interval=0.01, window=30, run=tmp_path) == 3
    assert "no answer since" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:99999999", "http://host:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        metrics_address(url)


def test_metrics_are_looked_for_where_servers_have_them() -> None:
    for url in ("host:8", "http://host:8/", "ws://host:8/api/asr-streaming"):
        assert metrics_address(url) == "http://host:8/metrics"
    assert metrics_address("https://host/own/metrics") == "https://host/own/metrics"


def test_a_bench_of_a_service_is_shown_without_asking_the_service(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = store.create(tmp_path, config(Recipe()))
    store.write_run(folder, store.Run(store.SCHEMA, folder.name, "2030-01-02T03:04:05+00:00", config(Recipe()), {}))
    with store.StandingFile(folder) as file:
        file.write(msgspec.structs.replace(STANDING, server=""))
        assert watch(once=True, interval=0.01, window=30, run=folder) == 0
    shown = capsys.readouterr().out
    assert "a service, which has no metrics" in shown
    assert "37 of 88" in shown
    assert "no answer" not in shown


# ---- the operations plane

METRICS = {
    "active_sessions": 3,
    "decode_queue_depth": 2,
    "decode_latency_total": 3.0,
    "decode_latency_count": 4,
    "decode_latency_max": 1.5,
    "rtf_avg": 0.25,
    "rtf_max": 0.5,
    "vad_triggers": 7,
    "decode_cancelled": 1,
    "error_counts": {"INTERNAL": 2, "UNAUTHENTICATED": 11},
    "of another server": [1],
}
SYSTEM = {
    "cpu_count": 16,
    "load_avg": [1.0, 2.5, 3.0],
    "process": {"pid": 7, "cpu_percent": 42.5, "rss_bytes": 3 * 2**30, "threads": 12},
    "system": {"memory_total_bytes": 64 * 2**30, "memory_percent": 31.0},
    "gpus": [
        {
            "index": 0,
            "name": "H200",
            "utilization_gpu": 88,
            "memory_total_mib": 143000,
            "memory_used_mib": 90000,
            "temperature_gpu": 61,
        },
        {"index": 1, "name": None, "utilization_gpu": None, "memory_used_mib": None, "temperature_gpu": None},
    ],
}


@pytest.mark.spec("operations-51")
def test_the_plane_is_shown_with_its_machine_and_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = {
        "/metrics.json": msgspec.json.encode(METRICS),
        "/system": msgspec.json.encode(SYSTEM),
        "/metrics": generate_latest(Metrics().registry),
    }
    with answering_paths(lambda path, _: (200, paths[path])) as address:
        assert watch(ops=address, once=True, interval=0.05, window=30, run=tmp_path, width=200) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "CPU 42.5 % of the process, load 1.00 2.50 3.00 on 16 cores" in shown
    assert "memory 3.00 GiB of the process, 12 threads; machine 31 % of 64.00 GiB" in shown
    assert "GPU 0 H200: 88 %, memory 90k of 143k MiB, 61 °C" in shown
    assert "GPU 1 : n/a, memory n/a of n/a MiB, n/a" in shown
    assert "sessions 3, decodes waiting 2, cancelled 1, VAD triggers 7" in shown
    assert "decode 0.75 s on average, 1.5 s at most; RTF 0.25 on average, 0.5 at most" in shown
    assert "errors INTERNAL 2, UNAUTHENTICATED 11" in shown
    assert "unavailable" not in shown


@pytest.mark.spec("operations-51")
def test_each_part_of_the_plane_that_does_not_answer_is_unavailable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def answer(path: str, _: str) -> tuple[int, bytes]:
        return {"/metrics.json": (401, b"{}"), "/system": (200, b"[]")}.get(path, (200, b"a 1\n"))

    with answering_paths(answer) as address:
        assert watch(ops=address, once=True, interval=0.05, window=30, run=tmp_path, width=200) == 0
    shown = capsys.readouterr().out
    assert "metrics unavailable: it answers 401 Unauthorized" in shown
    assert "system unavailable: what it answers is not what an operations plane answers" in shown


@pytest.mark.spec("operations-51")
def test_the_operators_token_goes_to_the_plane_and_the_key_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def answer(path: str, authorization: str) -> tuple[int, bytes]:
        given[path] = authorization
        return 200, b"{}" if path != "/metrics" else generate_latest(Metrics().registry)

    monkeypatch.setenv("STT_OBSERVABILITY_TOKEN", "operator")
    monkeypatch.setenv("EARMARK_API_KEY", "client")
    with answering_paths(answer) as address:
        assert watch(address, ops=address, once=True, interval=0.05, window=30, run=tmp_path) == 0
        assert given == {
            "/metrics": "Bearer client",
            "/metrics.json": "Bearer operator",
            "/system": "Bearer operator",
        }
        assert watch(ops=address, once=True, interval=0.05, window=30, run=tmp_path) == 0
        assert given["/metrics"] == "Bearer operator"


# ---- the run's folder


def test_a_run_under_way_says_how_it_stands_until_it_ends(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    folder = store.create(reports / "runs", config(Recipe()))
    store.write_run(folder, store.Run(store.SCHEMA, folder.name, "2030-01-02T03:04:05+00:00", config(Recipe()), {}))
    assert run_folder(None, reports) is None
    with store.StandingFile(folder) as file:
        assert store.read_standing(folder) is None  # nothing written yet
        file.write(store.Standing("ws://127.0.0.1:8000", 1000, 10, 900, 90, 9, 123456, 0.5))
        file.write(STANDING)  # shorter than the one before
        assert run_folder(None, reports) == folder
        written = (folder / "progress.json").stat().st_mtime
        assert run_view(None, written + 3600, reports) is None  # left behind
        left = run_view(folder, written + 3600, reports)
        assert left is not None
        assert left.told_seconds_ago == pytest.approx(3600, abs=0.01)
        view = run_view(None, written + 3, reports)
        assert view is not None
        assert (view.standing, view.name) == (STANDING, folder.name)
        assert view.told_seconds_ago == pytest.approx(3, abs=0.01)
    assert run_folder(None, reports) is None
    ended = run_view(reports / "runs", 0.0, reports)
    assert ended is not None
    assert (ended.name, ended.standing, ended.result) == (folder.name, None, "")


def test_a_folder_of_nothing_is_no_run(tmp_path: Path) -> None:
    assert run_view(tmp_path, 0.0, tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    view = run_view(tmp_path, 0.0, tmp_path)
    assert view is not None
    assert view.config is None
