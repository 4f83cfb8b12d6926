"""The small model that comes along: our server's engine says what transformers says, word for word, alone and among others."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
import soundfile

from harness.audio import load as load_audio
from harness.corpus import load as load_corpus
from server.engines.vllm.engine import VllmEngine
from tests.vllm.streams import running, transcribe
from tests.vllm.vllm_server import MODEL, VllmServer

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(300),
]

NANO = Path(__file__).parents[2] / "models" / "nano"
DELAYS_MS = (80, 480, 2400)
UTTERANCES = 8
MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """PCM of a few sentences, of every voice."""
    corpus = load_corpus("spoken-numbers", limit=UTTERANCES)
    return {utterance.id: load_audio(utterance) for utterance in corpus.utterances}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    async with running(NANO, max_num_seqs=UTTERANCES * len(DELAYS_MS)) as engine:
        yield engine


def by_transformers(recordings: dict[str, bytes], delay_ms: int) -> list[str]:
    """Texts of the recordings by the other implementation."""
    from training.evaluate import decode
    from training.export import shape_of, to_transformers
    from training.model import Nano

    nano = Nano(shape_of(json.loads((NANO / "params.json").read_text())))
    nano.voxtral = to_transformers(NANO)
    samples = [np.frombuffer(pcm, "<i2").astype(np.float32) / 32768 for pcm in recordings.values()]
    return [said.text for said in decode(nano.eval(), samples, delay_ms // 80)]


async def test_all_delays_in_one_batch_say_what_transformers_says(
    engine: VllmEngine, recordings: dict[str, bytes]
) -> None:
    pairs = [(pcm, delay_ms) for delay_ms in DELAYS_MS for pcm in recordings.values()]
    listeners = await asyncio.gather(*(transcribe(engine, pcm, delay_ms) for pcm, delay_ms in pairs))
    said = [listener.text.strip() for listener in listeners]
    assert said == [text for delay_ms in DELAYS_MS for text in by_transformers(recordings, delay_ms)]
    assert sum(len(text.split()) for text in said) > 3 * len(pairs), "it says something"


async def test_a_sentence_alone_is_what_it_is_among_others(engine: VllmEngine, recordings: dict[str, bytes]) -> None:
    pcms = list(recordings.values())[:4]
    alone = [(await transcribe(engine, pcm, 480)).text for pcm in pcms]
    together = await asyncio.gather(*(transcribe(engine, pcm, 480) for pcm in pcms))
    assert [listener.text for listener in together] == alone


async def test_its_card_names_the_file_that_is_there() -> None:
    weights = NANO / "consolidated.safetensors"
    assert weights.stat().st_size < MOST_BYTES
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", (NANO / "README.md").read_text())
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest()


async def test_offline_vllms_own_server_hears_a_recording_to_its_end_and_stops(
    recordings: dict[str, bytes], tmp_path: Path
) -> None:
    """Without an end of sequence it would go on to the model's length, long after the recording."""
    server = VllmServer(NANO, tmp_path, max_model_len=1024)
    try:
        url = server.url()
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for id, pcm in list(recordings.items())[:3]:
                form = {"model": MODEL, "temperature": "0"}
                answer = await client.post(
                    "/v1/audio/transcriptions", files={"file": (f"{id}.wav", wav(pcm))}, data=form
                )
                expected = by_transformers({id: pcm}, 480)
                assert [answer.json()["text"].strip()] == expected
    finally:
        server.stop()


def wav(pcm: bytes) -> bytes:
    """A file of it."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(pcm, "<i2"), 16000, format="WAV")
    return file.getvalue()
