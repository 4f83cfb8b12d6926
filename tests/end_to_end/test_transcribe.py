"""``earmark transcribe`` and ``earmark listen`` as people run them: processes against a real server, or one that they start."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from harness.drivers.recordings import wav
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer
from tests.end_to_end.speech import sentence
from tests.end_to_end.surfaces import NAMES, OPTIONS, target

WORDS = ("alpha", "bravo", "charlie", "delta", "echo")
TEXT = " ".join(WORDS)
PATIENCE_SECONDS = 100
PROTOCOLS = tuple(name for name in NAMES if name != "rest-stream")  # which loses the words that its cuts go through


def recording(folder: Path, name: str = "a.wav", *words: str) -> Path:
    path = folder / name
    path.write_bytes(wav(sentence(*(words or WORDS)), 16_000))
    return path


def command(what: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "harness.cli", what, *map(str, arguments)]


def earmark(what: str, *arguments: object, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EARMARK_API_KEY": key}
    return subprocess.run(
        command(what, *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=ROOT,
        env=environment,
        check=False,
    )


# ---- transcribe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("speed", ["real", "max"])
def test_a_recording_becomes_its_text_and_nothing_else_on_standard_output(
    protocol: str, speed: str, serve: Serve, tmp_path: Path
) -> None:
    where = target(protocol, serve(*OPTIONS))
    done = earmark("transcribe", recording(tmp_path), "--target", where, "--protocol", protocol, "--speed", speed)
    assert (done.returncode, done.stdout) == (0, TEXT + "\n"), done.stderr
    assert "2.0 s of audio, 5 words, first token" in done.stderr


def test_a_server_is_started_for_it(tmp_path: Path) -> None:
    done = earmark("transcribe", recording(tmp_path), "--engine", "scripted", "--speed", "max")
    assert (done.returncode, done.stdout) == (0, TEXT + "\n"), done.stderr
    assert "serving scripted" in done.stderr


def test_several_files_are_told_apart_and_a_bad_one_costs_the_exit_code_alone(serve: Serve, tmp_path: Path) -> None:
    one, other = recording(tmp_path), recording(tmp_path, "b.wav", "foxtrot")
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no sound")
    done = earmark("transcribe", one, bad, other, "--target", serve(*OPTIONS).ws(""), "--speed", "max")
    assert (done.returncode, done.stdout) == (3, f"{one}: {TEXT}\n{other}: foxtrot\n"), done.stderr
    assert f"{bad}: not an audio file" in done.stderr
    assert "in total: 2 files, 1 failed, 2.4 s of audio, 6 words" in done.stderr


def test_json_is_an_object_for_each_file(serve: Serve, tmp_path: Path) -> None:
    one, bad = recording(tmp_path), tmp_path / "bad.wav"
    bad.write_text("this is no sound")
    done = earmark("transcribe", "--json", one, bad, "--target", serve(*OPTIONS).ws(""), "--delay-ms", 480)
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 3
    assert (first["file"], first["text"], first["outcome"], first["words"]) == (str(one), TEXT, "ok", 5)
    assert (first["audio_seconds"], first["delay_ms"]) == (2.0, 480)
    assert [word["text"] for word in first["word_times"]] == list(WORDS)
    assert 0 < first["first_token_seconds"] < first["real_time_factor"] * 2.0
    assert (second["file"], second["outcome"]) == (str(bad), "failed")


def test_the_sound_of_a_video_is_a_recording_too(serve: Serve, tmp_path: Path) -> None:
    """Matroska with PCM in it, which keeps the samples that the scripted engine reads its words from."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.frombuffer(sentence(*WORDS), "<i2")[None, :], "s16", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    done = earmark("transcribe", path, "--target", serve(*OPTIONS).ws(""), "--speed", "max")
    assert (done.returncode, done.stdout) == (0, TEXT + "\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "ws://127.0.0.1:1"], "cannot connect"),
        (["--protocol", "semaphore"], "unknown protocol 'semaphore'"),
        (["--language", "en", "--target", "ws://127.0.0.1:1"], "carries no language"),
        (["--speed", "fast"], "real or max"),
        (["--target", "ws://127.0.0.1:1", "--server-option=--vad"], "cannot be combined with --target"),
        (["--protocol", "deepgram", "--api-key", "k", "--delay-ms", "480"], "takes no transcription delay"),
    ],
)
def test_what_cannot_be_is_said_with_exit_code_3(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = earmark("transcribe", recording(tmp_path), *arguments)
    assert done.returncode == 3
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_is_told(serve: Serve, tmp_path: Path) -> None:
    done = earmark("transcribe", recording(tmp_path), "--target", serve(*OPTIONS).ws(""), key="wrong")
    assert done.returncode == 3
    assert "missing or wrong API key" in done.stderr


def test_on_a_terminal_the_text_grows_in_place(serve: Serve, tmp_path: Path) -> None:
    seen = on_terminal("transcribe", recording(tmp_path), "--target", serve(*OPTIONS).ws(""))
    for count in range(1, len(WORDS) + 1):
        assert " ".join(WORDS[:count]) in seen
    assert "\x1b[2K" in seen  # a line drawn over
    assert seen.rstrip().splitlines()[-2].endswith(TEXT)


def on_terminal(what: str, *arguments: object) -> str:
    """What a terminal of the command shows, until it ends."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "EARMARK_API_KEY": KEY, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        command(what, *arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
    )
    os.close(theirs)
    seen, end = b"", time.monotonic() + PATIENCE_SECONDS
    try:
        while time.monotonic() < end:
            readable, _, _ = select.select([ours], [], [], 1.0)
            try:
                data = os.read(ours, 65_536) if readable else b""
            except OSError:  # the other end is closed: Linux says EIO
                break
            seen += data
            if readable and not data:
                break
    finally:
        os.close(ours)
        if process.wait(20) != 0:
            pytest.fail(seen.decode(errors="replace"))
    return seen.decode()


# ---- listen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_played_recording_is_heard_to_its_end(protocol: str, serve: Serve, tmp_path: Path) -> None:
    where = target(protocol, serve(*OPTIONS))
    done = earmark("listen", "--wav", recording(tmp_path), "--target", where, "--protocol", protocol)
    assert (done.returncode, done.stdout) == (0, TEXT + "\n"), done.stderr
    assert "2.0 s of audio, 5 words" in done.stderr


def test_an_interrupt_ends_the_utterance_and_waits_for_its_final(own_server: Serve, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(150)]  # a minute
    server = own_server("--unlimited")
    path = recording(tmp_path, "long.wav", *words)
    process = subprocess.Popen(
        command("listen", "--json", "--wav", path, "--target", server.ws("")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "EARMARK_API_KEY": KEY},
    )
    assert process.stderr is not None
    assert "Ctrl+C ends it" in process.stderr.readline()
    listened_to(server, 1.0)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, complained
    told = json.loads(said)
    assert told["outcome"] == "ok"
    assert 0 < told["words"] < len(words)
    assert told["text"] == " ".join(words[: told["words"]])
    assert told["audio_seconds"] < 60


def listened_to(server: RunningServer, seconds: float) -> None:
    """Wait until the server has taken so much audio."""
    end = time.monotonic() + PATIENCE_SECONDS
    while server.metric("earmark_audio_seconds_total", surface="yap") < seconds:
        assert time.monotonic() < end
        time.sleep(0.05)  # between two looks at another process, which has no way to tell us
