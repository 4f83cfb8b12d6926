"""What a server keeps of its streams, in files, and what its log never holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import wave
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from server.config import SURFACES
from tests.audio_files import wav_file
from tests.end_to_end.clients import realtime, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.plane import ADMIN, FREE, admin, ask, until
from tests.end_to_end.rpc_clients import OPEN, chunks, create, new_id, stream, stub, transcribe
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import sentence
from tests.end_to_end.test_openai_files import upload
from tests.end_to_end.ways import by_rest, by_session

NAME = re.compile(r"\d{8}T\d{6}_[A-Za-z0-9_-]+\.wav")
DAY_SECONDS = 86400


async def say_over_yap(server: RunningServer, pcm: bytes) -> None:
    async with yap(server) as client:
        await client.say(pcm, "request-1")


async def say_over_realtime(server: RunningServer, pcm: bytes) -> None:
    async with realtime(server) as client:
        await client.say(pcm)


async def say_over_openai(server: RunningServer, pcm: bytes) -> None:
    assert (await upload(server, wav_file(pcm), model="whisper-1")).status_code == 200


async def say_over_grpc(server: RunningServer, pcm: bytes) -> None:
    async with stub(server) as backend:
        await transcribe(backend, pcm, attributes={"api_key": CLIENTS_KEY})


SPEAKERS: dict[str, Callable[[RunningServer, bytes], Awaitable[object]]] = {
    "yap": say_over_yap,
    "realtime": say_over_realtime,
    "openai": say_over_openai,
    "rest": by_rest,
    "sessions": by_session,
    "grpc": say_over_grpc,
}
"""One for every surface."""

EVERY_SURFACE = ("--surfaces", ",".join(SPEAKERS), "--grpc-port", "0")
CLIENTS_KEY = "key-of-a-grpc-client"


def recordings(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.wav"))


def audio(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        frames: bytes = file.readframes(file.getnframes())
        return frames


def written(server: RunningServer, count: int) -> Callable[[], bool]:
    return lambda: server.metric("earmark_captures_total", outcome="written") == count


def test_every_surface_has_a_speaker_here() -> None:
    assert set(SURFACES) == set(SPEAKERS), "a surface is to be heard by the tests of this file too: add it to SPEAKERS"


# ---- audio


@pytest.mark.spec("operations-42", "operations-43")
async def test_every_surface_leaves_the_audio_as_it_was_received(own_server: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    server = own_server(*FREE, *EVERY_SURFACE, "--persist-audio", "--audio-directory", str(directory))
    for number, (surface, speak) in enumerate(SPEAKERS.items(), 1):
        pcm = sentence("kept", "of", surface)
        await speak(server, pcm)
        await until(written(server, number), f"{surface} is written")
        newest = max(recordings(directory), key=lambda path: path.stat().st_mtime_ns)
        assert audio(newest) == pcm
    assert len(recordings(directory)) == len(SPEAKERS)
    assert all(NAME.fullmatch(path.name) for path in recordings(directory))
    assert server.metric("earmark_capture_dropped_chunks_total") == 0


@pytest.mark.spec("operations-42", "operations-43")
async def test_a_grpc_stream_is_kept_at_its_own_rate_under_its_sessions_name(own_server: Serve, tmp_path: Path) -> None:
    server = own_server(*FREE, *OPEN, "--persist-audio", "--audio-directory", str(tmp_path))
    pcm = bytes(range(256)) * 25  # 0.4 s at 8 kHz
    session_id = new_id()
    async with stub(server) as backend:
        await create(backend, session_id)
        await stream(backend, chunks(pcm, session_id, 8_000), {"session-id": session_id})
    await until(written(server, 1), "it is written")
    [path] = recordings(tmp_path)
    assert path.stem.partition("_")[2] == session_id
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.readframes(file.getnframes())) == (8_000, pcm)


@pytest.mark.spec("operations-42")
async def test_nothing_is_kept_unless_asked_for(serve: Serve) -> None:
    server = serve(*FREE)
    await say_over_yap(server, sentence("gone"))
    assert not list(ROOT.glob("data/audio/*"))
    assert server.metric("earmark_captures_total", outcome="written") == 0


@pytest.mark.spec("operations-43")
@pytest.mark.parametrize(
    ("request_id", "name"),
    [
        ("plain-Name_7", "plain-Name_7"),
        ("a b/c:ü", "a_b_c"),
        ("../../etc/passwd", "etc_passwd"),
        ("x" * 200, "x" * 80),
        ("!" * 5, "session"),
    ],
)
async def test_files_are_named_by_time_and_stream(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory, request_id: str, name: str
) -> None:
    directory = tmp_path_factory.getbasetemp() / "named"
    server = serve(*FREE, "--persist-audio", "--audio-directory", str(directory))
    before = set(recordings(directory))
    async with yap(server) as client:
        await client.say(sentence("named"), request_id)
    await until(lambda: len(set(recordings(directory)) - before) == 1, "the file is there")
    [path] = set(recordings(directory)) - before
    stamp, _, rest = path.stem.partition("_")
    assert abs(time.mktime(time.strptime(stamp, "%Y%m%dT%H%M%S")) - time.time()) < 60
    assert rest == name
    assert directory in path.parents


@pytest.mark.spec("operations-43")
async def test_two_streams_of_one_name_and_second_are_two_files_and_one_without_audio_is_none(
    own_server: Serve, tmp_path: Path
) -> None:
    server = own_server(*FREE, "--persist-audio", "--audio-directory", str(tmp_path))
    async with yap(server) as one, yap(server) as two, yap(server) as silent:
        for client in (one, two, silent):
            await client.start("same")
        for client in (one, two):
            await client.append(sentence("twice"), "same")
            await client.finish("same")
            await client.heard("same")
        await silent.finish("same")
        await silent.heard("same")
    await until(written(server, 2), "both are written")
    assert [audio(path) for path in recordings(tmp_path)] == [sentence("twice")] * 2
    assert server.stop() == 0
    assert len(recordings(tmp_path)) == 2


@pytest.mark.spec("operations-45")
@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), {"a", "b", "c"}),
        (("--audio-max-age-days", "2.5"), {"b", "c"}),
        (("--audio-max-files", "2"), {"c"}),
        (("--audio-max-bytes", "33000"), {"b", "c"}),
        (("--audio-max-files", "0", "--audio-max-bytes", "off", "--audio-max-age-days", "-1"), {"a", "b", "c"}),
        (("--audio-max-age-days", "1.5", "--audio-max-files", "3"), {"c"}),
    ],
    ids=["none", "age", "number", "bytes", "off", "both"],
)
async def test_the_oldest_files_go_after_a_stream(
    own_server: Serve, tmp_path: Path, options: tuple[str, ...], left: set[str]
) -> None:
    for days, name in ((3, "a"), (2, "b"), (1, "c")):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(bytes(10_000))
        os.utime(path, (time.time() - days * DAY_SECONDS,) * 2)
    other = tmp_path / "notes.txt"
    other.write_text("not ours")
    os.utime(other, (0, 0))
    server = own_server(*FREE, "--persist-audio", "--audio-directory", str(tmp_path), *options)
    pcm = sentence("new")  # 12 844 bytes with its header
    await say_over_yap(server, pcm)
    await until(written(server, 1), "it is written")
    await until(lambda: {path.stem for path in recordings(tmp_path)} >= left, "done")
    assert server.stop() == 0
    names = {path.stem for path in recordings(tmp_path)}
    assert {name for name in names if len(name) == 1} == left
    assert len(names) == len(left) + 1, "and the new one"
    assert other.exists()


@pytest.mark.spec("operations-50")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--persist-audio", "--audio-directory", "{file}/audio"), "--audio-directory"),
        (("--log-transcripts", "--transcript-file", "{file}/transcripts"), "--transcript-file"),
    ],
)
def test_what_cannot_be_written_stops_the_start(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = subprocess.run(
        command(
            *("--engine", "scripted", "--port", "0", "--ops-port", "0"),
            *(option.replace("{file}", str(tmp_path / "file")) for option in options),
        ),
        cwd=ROOT,
        env=clean_environment({"VOXTRAL_API_KEY": "k"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.spec("operations-50")
async def test_a_folder_that_goes_away_costs_no_stream_anything(own_server: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "audio"
    server = own_server(*FREE, "--persist-audio", "--audio-directory", str(directory))
    directory.rmdir()
    await say_over_yap(server, sentence("all", "is", "well"))
    await until(lambda: server.metric("earmark_captures_total", outcome="failed") >= 1, "it is counted")
    assert "audio is not recorded" in server.log()
    assert "Traceback" not in server.log()


# ---- transcripts and the log


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.mark.spec("operations-46", "operations-47", "operations-49")
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_text_and_no_key_is_ever_in_the_log(own_server: Serve, tmp_path: Path, log_format: str) -> None:
    """Over every surface, at the loudest level; what was said is in the transcript file, and only there."""
    sink = tmp_path / "made" / "transcripts.log"
    keys = {
        "VOXTRAL_API_KEY": KEY,
        "EARMARK_API_KEYS": "second-key-4711,third-key-0815",
        "STT_OBSERVABILITY_TOKEN": "watch-4711",
    } | ADMIN
    server = own_server(
        *(*FREE, *EVERY_SURFACE, "--log-level", "debug", "--log-format", log_format),
        *("--log-transcripts", "--transcript-file", str(sink)),
        environment=keys,
    )
    for surface, speak in SPEAKERS.items():
        await speak(server, sentence("treasure", surface, "füßchen"))
    async with yap(server, path="/api/asr-streaming?api_key=a-wrong-key-9999", greeted=False) as client:
        assert (await client.error())["code"] == "authentication_failed"
    for token in ("watch-4711", "a-wrong-key-9999"):
        ask(server, "/metrics?api_key=second-key-4711", Authorization=f"Bearer {token}")
    admin(server, "/load_model", {"model_id": "twin"})
    await until(lambda: admin(server, "/load_model_status?model_id=twin").told["status"] == "success", "it is loaded")
    await until(lambda: len(lines(sink)) == len(SPEAKERS), "all is written")
    assert server.stop() == 0
    log = server.log()
    assert "twin" in log, "something is logged"
    for secret in (KEY, "second-key", "third-key", "watch-4711", ADMIN["STT_ADMIN_TOKEN"], "a-wrong-key", CLIENTS_KEY):
        assert secret not in log
    for said in ("treasure", "füßchen", "f\\u00fc"):
        assert said not in log
    characters = {len(f"treasure {surface} füßchen") for surface in SPEAKERS}
    told = set(map(int, re.findall(r'characters"?[=:] ?(\d+)', log)))
    assert told == characters
    assert {entry["text"] for entry in lines(sink)} == {f"treasure {surface} füßchen" for surface in SPEAKERS}
    for entry in lines(sink):
        assert set(entry) == {"time", "surface", "client", "utterance", "audio_seconds", "text"}
        assert entry["surface"] in SPEAKERS
        assert entry["client"] == "127.0.0.1", entry["surface"]
        assert entry["audio_seconds"] == 1.2


@pytest.mark.spec("operations-46")
async def test_at_the_usual_level_not_even_the_length_is_told(own_server: Serve) -> None:
    server = own_server(*FREE)
    await say_over_yap(server, sentence("treasure"))
    assert server.stop() == 0
    assert "characters" not in server.log()
    assert "treasure" not in server.log()


@pytest.mark.spec("operations-47")
async def test_without_a_file_there_is_a_warning_and_no_transcript(own_server: Serve) -> None:
    server = own_server(*FREE, "--log-transcripts")
    await say_over_yap(server, sentence("treasure"))
    assert "no transcripts are written" in server.log()
    assert "treasure" not in server.log()


@pytest.mark.spec("operations-47")
async def test_a_file_alone_is_not_written(own_server: Serve, tmp_path: Path) -> None:
    server = own_server(*FREE, "--transcript-file", str(tmp_path / "t.log"))
    await say_over_yap(server, sentence("treasure"))
    assert server.stop() == 0
    assert not (tmp_path / "t.log").exists()


@pytest.mark.spec("operations-48")
@pytest.mark.parametrize("days", [3, 0])
async def test_each_day_has_a_file_and_the_oldest_go(own_server: Serve, tmp_path: Path, days: int) -> None:
    sink = tmp_path / "transcripts.log"
    sink.write_text('{"text": "of yesterday"}\n')
    os.utime(sink, (time.time() - DAY_SECONDS,) * 2)
    today = date.today()
    for ago in range(2, 8):
        (tmp_path / f"transcripts.log.{today - timedelta(days=ago)}").write_text("old\n")
    options = ("--log-transcripts", "--transcript-file", str(sink), "--transcript-retention-days", str(days))
    server = own_server(*FREE, *options)
    await say_over_yap(server, sentence("today"))
    assert server.stop() == 0
    old = set(os.listdir(tmp_path)) - {sink.name}
    if days == 0:
        assert [entry["text"] for entry in lines(sink)] == ["of yesterday", "today"]
        assert len(old) == 6
        return
    assert [entry["text"] for entry in lines(sink)] == ["today"]
    assert old == {f"transcripts.log.{today - timedelta(days=ago)}" for ago in range(1, days + 1)}
    assert lines(tmp_path / f"transcripts.log.{today - timedelta(days=1)}") == [{"text": "of yesterday"}]


@pytest.mark.spec("operations-49")
def test_requests_to_the_plane_leave_no_lines(own_server: Serve) -> None:
    server = own_server(*FREE, "--log-level", "debug")
    before = server.log()
    for path in ("/metrics", "/metrics.json", "/health", "/system", "/admin/list_models"):
        ask(server, path)
    assert server.log() == before
