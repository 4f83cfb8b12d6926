"""The server with the Whisper engine and a model whose words are known: real processes, sockets and decodings."""

from __future__ import annotations

import asyncio
import json
import subprocess
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from server.engines.recordings import wav_of
from tests.end_to_end.clients import realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment, command
from tests.server import tone_whisper
from tests.server.tone_whisper import GERMAN, WORDS, tones

SAID = [WORDS[(5 * n * n + n // 2) % 6] for n in range(30)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_whisper.write(tmp_path_factory.mktemp("whisper") / "tones")


def options(checkpoint: Path, *more: str) -> list[str]:
    """What tones need: no detection of voices, no text before the window, weights as they are."""
    fixed = ["--no-vad", "--no-whisper-vad", "--whisper-prompt-characters", "0", "--whisper-compute-type", "float32"]
    return [
        *fixed,
        "--whisper-language",
        "en",
        "--whisper-device",
        "cpu",
        "--whisper-cpu-threads",
        "1",
        "--whisper-model",
        str(checkpoint),
        *more,
    ]


@pytest.fixture
def server(serve: Serve, checkpoint: Path) -> RunningServer:
    return serve(*options(checkpoint, "--whisper-window-seconds", "4"), engine="whisper")


async def test_the_same_audio_gives_the_same_right_text_twice(server: RunningServer) -> None:
    async with yap(server) as client:
        frames = [await client.say(tones(*SAID), request, chunk_bytes=2560) for request in ("r1", "r2")]
    assert [text_of(frame) for frame in frames] == [" ".join(SAID)] * 2
    words = frames[0][-2]["payload"]["words"]
    assert [word["text"] for word in words] == SAID
    assert all(before["end"] <= after["start"] for before, after in pairwise(words))


async def test_an_uploaded_file_is_heard_with_words_and_times(serve: Serve, checkpoint: Path) -> None:
    uploads = serve(*options(checkpoint, "--surfaces", "yap,openai"), engine="whisper")
    async with httpx.AsyncClient(timeout=60.0) as client:
        answer = await client.post(
            f"http://127.0.0.1:{uploads.port}/v1/audio/transcriptions",
            headers={"Authorization": f"Bearer {KEY}"},
            files={"file": ("said.wav", wav_of(tones(*SAID)), "audio/wav")},
            data={"model": "tones", "response_format": "verbose_json", "timestamp_granularities[]": "word"},
        )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["text"] == " ".join(SAID)
    assert [word["word"] for word in told["words"]] == SAID
    assert uploads.metric("earmark_engine", figure="decodes") < 10  # not one for each half second of 15


async def test_text_comes_while_somebody_speaks(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start()
        await client.append(tones(*SAID[:4]))
        first = await client.receive()
        assert first["type"] == "token"
        assert " ".join(SAID[:3]).startswith(first["payload"]["text"])
        await client.append(tones(*SAID[4:6]))
        await client.finish()
        frames = [first, *await client.receive_until("done")]
    assert text_of(frames) == " ".join(SAID[:6])
    assert "".join(frame["payload"]["text"] for frame in frames[:-2]) == text_of(frames)


async def test_both_protocols_hear_the_same(server: RunningServer) -> None:
    async with realtime(server, model="tones") as client:
        assert await client.say(tones(*SAID[:8])) == " ".join(SAID[:8])


async def test_several_clients_at_once_each_get_their_own_text(server: RunningServer) -> None:
    async def speak(number: int) -> str:
        async with yap(server) as client:
            return text_of(await client.say(tones(*SAID[number : number + 6])))

    texts = await asyncio.gather(*(speak(number) for number in range(8)))
    assert texts == [" ".join(SAID[number : number + 6]) for number in range(8)]
    await server.until_idle()
    assert server.metric("earmark_engine", figure="decodes") > 8
    assert server.metric("earmark_engine", figure="waiting") == 0


async def test_a_client_that_cancels_leaves_nothing_behind(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start("gone")
        await client.append(tones(*SAID), "gone")
        await client.send("cancel", "gone")
        await client.receive_until("cancelled")
        assert text_of(await client.say(tones("echo"), "next")) == "echo"
    await server.until_idle()


async def test_a_rolled_utterance_is_one_text(serve: Serve, checkpoint: Path) -> None:
    slots = "1"  # one segment may end while the next one waits
    rolling = serve(
        *options(checkpoint, "--segment-seconds", "5", "--segment-overlap-seconds", "1", "--whisper-slots", slots),
        engine="whisper",
    )
    async with yap(rolling) as client:
        assert text_of(await client.say(tones(*SAID))) == " ".join(SAID)


async def test_a_language_is_detected_where_none_is_set(serve: Serve, checkpoint: Path) -> None:
    async with yap(serve(*options(checkpoint, "--whisper-language", ""), engine="whisper")) as client:
        assert text_of(await client.say(tones("delta", "alpha"))) == f"{GERMAN[3]} {GERMAN[0]}"


def test_it_says_what_it_is(server: RunningServer) -> None:
    (model,) = (one for one in json.loads(server.get("/v1/models")[1])["data"] if one["id"] == "tones")
    assert (model["engine"], model["slots"]) == ("whisper", 8)


def test_without_a_model_the_start_ends_with_a_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    ended = subprocess.run(
        command("--engine", "whisper", "--port", "0", "--no-whisper-download", "--whisper-model-dir", str(tmp_path)),
        cwd=ROOT,
        env=clean_environment({"VOXTRAL_API_KEY": "k"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "The server cannot start: whisper does not start: the model 'small' is not on this machine" in ended.stderr
    assert "download_model('small', 'models/whisper')" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
