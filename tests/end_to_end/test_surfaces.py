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
from harness.drivers.base import Request, address
from harness.latency import measure
from harness.replay import Cell, Replayed, replay
from harness.replay.carrying import Destination
from harness.timeline import Kind, Outcome, StreamRecord
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer
from tests.end_to_end.speech import distinct_words
from tests.end_to_end.surfaces import NAMES, OPTIONS, WHOLE, target
from wire.scripted import speak
from wire.words import TimedWord

STREAMS = 3


def corpus() -> tuple[list[Utterance], dict[str, bytes]]:
    """Utterances of words with their times, and their audio, in which the scripted engine hears those words. No word lies across a
    whole second, where `rest-stream` cuts."""
    utterances, sounds = [], {}
    for number in range(STREAMS):
        texts = distinct_words(5 + number, number)
        words = tuple(TimedWord(text, 0.5 * n + 0.1, 0.5 * n + 0.4) for n, text in enumerate(texts))
        seconds = 0.5 * len(words) + 0.1
        utterance = Utterance(f"u{number}", " ".join(texts), seconds, words=words, speaker=f"s{number}")
        utterances.append(utterance)
        sounds[utterance.id] = speak(words, seconds)
    return utterances, sounds


def destination(name: str, server: RunningServer, delay_ms: int | None, options: dict[str, str]) -> Destination:
    driver = DRIVERS[name]
    request = Request("scripted", delay_ms, None, options)
    driver.check(request)
    url, headers = address(driver, target(name, server), KEY, request)
    return Destination(driver, url, headers, request)


async def run(name: str, server: RunningServer, *, delay_ms: int | None = None, **options: str) -> Replayed:
    utterances, sounds = corpus()
    cell = Cell(concurrency=3, warm_up=0, packet_ms=DRIVERS[name].packet_ms)
    return await replay(utterances, destination(name, server, delay_ms, options), cell, lambda one: sounds[one.id])


def text_as_shown(record: StreamRecord) -> list[str]:
    return [(stable + tentative).strip() for _, stable, tentative in record.shown()]


@pytest.mark.parametrize("name", NAMES)
async def test_every_surface_gives_the_same_words(name: str, serve: Serve) -> None:
    replayed = await run(name, serve(*OPTIONS))
    assert [(record.outcome, record.error) for record in replayed.records] == [(Outcome.OK, None)] * STREAMS
    assert [record.hypothesis.strip() for record in replayed.records] == [one.text for one in corpus()[0]]
    for record in replayed.records:
        assert text_as_shown(record)[-1] == record.reference
        latency = measure(record)
        assert latency.time_to_final is not None
        assert latency.unmatched_words == 0
        assert sum(1 for _ in record.of(Kind.FINAL)) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WHOLE])
async def test_text_of_a_streaming_surface_comes_before_the_audio_has_ended(name: str, serve: Serve) -> None:
    replayed = await run(name, serve(*OPTIONS))
    for record in replayed.records:
        first = next(t_ns for t_ns, stable, tentative in record.shown() if (stable + tentative).strip())
        assert first < list(record.of(Kind.PACKET))[-1].t_ns


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_recording_leaves_when_it_has_been_spoken(name: str, serve: Serve) -> None:
    replayed = await run(name, serve(*OPTIONS))
    for record in replayed.records:
        (packet,) = record.of(Kind.PACKET)
        assert packet.due_ns is not None
        assert packet.due_ns - record.t0_ns == pytest.approx(record.audio_seconds * 1e9, abs=1)
        assert packet.t_ns >= packet.due_ns
        assert packet.value == pytest.approx(record.audio_seconds)


@pytest.mark.skipif("sessions" not in NAMES, reason="the server has no sessions")
@pytest.mark.parametrize("delay_ms", [160, 960])
async def test_the_delay_that_is_asked_for_is_in_force_over_sessions(delay_ms: int, serve: Serve) -> None:
    replayed = await run("sessions", serve(*OPTIONS), delay_ms=delay_ms)
    assert {record.delay_ms_in_force for record in replayed.records} == {delay_ms}


async def test_deltas_of_a_file_are_appended_one_by_one(serve: Serve) -> None:
    replayed = await run("openai-files", serve(*OPTIONS), stream="true")
    for record in replayed.records:
        assert record.hypothesis.strip() == record.reference
        assert sum(1 for _ in record.of(Kind.APPENDED)) > 1


async def test_the_delay_that_is_asked_for_is_in_force_over_openai_sessions(serve: Serve) -> None:
    replayed = await run("openai-realtime", serve(*OPTIONS), delay_ms=960)
    assert {record.delay_ms_in_force for record in replayed.records} == {960}


def test_a_bench_starts_the_server_that_a_protocol_needs_and_reports_it(tmp_path: Path) -> None:
    """Warnings are errors in that process: a report of streams without a word before the end must not stumble."""
    for name in (*WHOLE, *(name for name in ("sessions", "grpc") if name in NAMES)):
        done = subprocess.run(
            [
                *(sys.executable, "-W", "error::UserWarning", "-m", "harness.cli", "bench", "--protocol", name),
                *("--engine", "scripted", "--limit", "2", "--concurrency", "2", "--delay-ms", "server"),
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
        assert said["runs"][0]["scores"]["outcomes"] == {"ok": 2}
        assert "<html" in Path(said["report"]).read_text()
