"""The harness and the server over every surface: the same text, and a timeline that says when it was sent and heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.corpus import Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import Request, Transport, address
from harness.latency import measure
from harness.replay import Cell, Replayed, replay
from harness.replay.carrying import Destination
from harness.timeline import Kind, Outcome, StreamRecord
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer
from tests.end_to_end.speech import distinct_words, spoken

SURFACES = ("yap", "realtime", "openai-realtime", "openai-files")
WHOLE = tuple(name for name in SURFACES if DRIVERS[name].whole)
STREAMS = 3


def corpus() -> tuple[list[Utterance], dict[str, bytes]]:
    """Utterances of words with their times, and their audio, in which the scripted engine hears those words."""
    utterances, sounds = [], {}
    for number in range(STREAMS):
        pcm, words = spoken(distinct_words(5 + number, number), number)
        utterance = Utterance(
            f"u{number}",
            " ".join(word.text for word in words),
            len(pcm) / 32_000,
            words=tuple(words),
            speaker=f"s{number}",
        )
        utterances.append(utterance)
        sounds[utterance.id] = pcm
    return utterances, sounds


def destination(name: str, server: RunningServer, **options: str) -> Destination:
    driver = DRIVERS[name]
    target = f"grpc://127.0.0.1:{server.ports['grpc']}" if driver.transport is Transport.GRPC else server.ws("")
    request = Request("scripted", None, None, options)
    driver.check(request)
    url, headers = address(driver, target, KEY, request)
    return Destination(driver, url, headers, request)


async def run(name: str, server: RunningServer, **options: str) -> Replayed:
    utterances, sounds = corpus()
    cell = Cell(concurrency=3, warm_up=0, packet_ms=DRIVERS[name].packet_ms)
    return await replay(utterances, destination(name, server, **options), cell, lambda one: sounds[one.id])


def text_as_shown(record: StreamRecord) -> list[str]:
    return [(stable + tentative).strip() for _, stable, tentative in record.shown()]


@pytest.mark.parametrize("name", SURFACES)
async def test_every_surface_gives_the_same_words(name: str, serve: Serve) -> None:
    replayed = await run(name, serve("--unlimited"))
    assert [(record.outcome, record.error) for record in replayed.records] == [(Outcome.OK, None)] * STREAMS
    assert [record.hypothesis.strip() for record in replayed.records] == [one.text for one in corpus()[0]]
    for record in replayed.records:
        assert text_as_shown(record)[-1] == record.reference
        latency = measure(record)
        assert latency.time_to_final is not None
        assert latency.unmatched_words == 0
        assert sum(1 for _ in record.of(Kind.FINAL)) == 1


@pytest.mark.parametrize("name", [name for name in SURFACES if name not in WHOLE])
async def test_text_of_a_streaming_surface_comes_before_the_audio_has_ended(name: str, serve: Serve) -> None:
    replayed = await run(name, serve("--unlimited"))
    for record in replayed.records:
        first = next(t_ns for t_ns, stable, tentative in record.shown() if (stable + tentative).strip())
        assert first < list(record.of(Kind.PACKET))[-1].t_ns


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_recording_leaves_when_it_has_been_spoken(name: str, serve: Serve) -> None:
    replayed = await run(name, serve("--unlimited"))
    for record in replayed.records:
        (packet,) = record.of(Kind.PACKET)
        assert packet.due_ns is not None
        assert packet.due_ns - record.t0_ns == pytest.approx(record.audio_seconds * 1e9, abs=1)
        assert packet.t_ns >= packet.due_ns
        assert packet.value == pytest.approx(record.audio_seconds)


async def test_deltas_of_a_file_are_appended_one_by_one(serve: Serve) -> None:
    replayed = await run("openai-files", serve("--unlimited"), stream="true")
    for record in replayed.records:
        assert record.hypothesis.strip() == record.reference
        assert sum(1 for _ in record.of(Kind.APPENDED)) > 1


async def test_the_delay_that_is_asked_for_is_in_force_over_openai_sessions(serve: Serve) -> None:
    server, (utterances, sounds) = serve("--unlimited"), corpus()
    driver, request = DRIVERS["openai-realtime"], Request("scripted", 960)
    url, headers = address(driver, server.ws(""), KEY, request)
    where = Destination(driver, url, headers, request)
    replayed = await replay(utterances[:2], where, Cell(warm_up=0), lambda one: sounds[one.id])
    assert {record.delay_ms_in_force for record in replayed.records} == {960}


def test_a_bench_starts_the_server_that_a_protocol_needs_and_reports_recordings(tmp_path: Path) -> None:
    """Warnings are errors in that process: a report of streams without a word before the end must not stumble."""
    for name in WHOLE:
        done = subprocess.run(
            [
                *(sys.executable, "-W", "error::UserWarning", "-m", "harness.cli", "bench", "--protocol", name),
                *("--engine", "scripted", "--limit", "4", "--concurrency", "4", "--delay-ms", "server"),
                *("--out", str(tmp_path / name), "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=200,
            cwd=ROOT,
            env={**os.environ},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["runs"][0]["scores"]["outcomes"] == {"ok": 4}
        assert "<html" in Path(said["report"]).read_text()
