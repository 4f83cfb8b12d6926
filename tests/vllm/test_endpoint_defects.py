"""What vLLM's own realtime endpoint gets wrong: each defect as one scenario, which finds it there and does not find it here.

A scenario talks to an endpoint and returns the faults it has found, in words. Ours must have none. Of vLLM 0.32's own those that are
expected are named, so that a release that mends one is noticed here. Where its endpoint does well too, the scenario says so, and ours
alone is asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine

import pytest
from websockets.exceptions import ConnectionClosed

from tests.end_to_end.clients import Frame, Realtime
from tests.vllm.checkpoints import sound
from tests.vllm.conftest import UNCOMMITTED_SECONDS
from tests.vllm.endpoints import Endpoint

pytestmark = pytest.mark.usefixtures("their_server")  # which starts while ours does

NEVER_SECONDS = 5.0
"""What has not come by then is taken not to come: several times what a server needs that is well."""

STEPS_PER_SECOND = 12.5

Scenario = Callable[[Endpoint], Coroutine[None, None, list[str]]]


# ---- scenarios


async def streams_beyond_the_slots(endpoint: Endpoint) -> list[str]:
    """Twice as many streams as there are slots, and one: each is heard, or told why not.

    None of them ends, as live ones do not, so that vLLM never gives a slot to the others, nor says a word to them.
    """
    count = 2 * endpoint.slots + 1
    async with endpoint.clients(count) as clients:
        for client in clients:
            await client.start()
            await client.append(sound(1.0, 1))
        answers = await asyncio.gather(*(answered(client) for client in clients))
    unheard = answers.count(False)
    return [f"{unheard} of {count} streams are neither heard nor refused"] if unheard else []


async def answered(client: Realtime) -> bool:
    """Whether text or an error comes."""
    try:
        async with asyncio.timeout(NEVER_SECONDS):
            while True:
                frame = await client.receive(NEVER_SECONDS)
                if frame["type"] == "error" or frame.get("delta"):
                    return True
    except TimeoutError:
        return False


async def utterances_sent_back_to_back(endpoint: Endpoint) -> list[str]:
    """Two utterances without waiting in between: both come back, as they do one by one.

    vLLM ignores the second commit while it works on the first utterance, and throws the audio behind it away.
    """
    pcms = [sound(2.0, 1), sound(2.0, 2)]
    faults = []
    async with endpoint.client() as client:
        alone = []
        for pcm in pcms:
            await say(client, pcm)
            alone.append(await text_of(client))
        for pcm in pcms:
            await say(client, pcm)
        for number, text in enumerate(alone, 1):
            done = await frame_of(client, "transcription.done")
            if done is None:
                faults.append(f"utterance {number} does not come back")
            elif done["text"] != text:
                faults.append(f"utterance {number} comes back changed")
    return faults


async def a_stream_that_stops_sending(endpoint: Endpoint) -> list[str]:
    """A client that neither sends nor ends gives back what it holds of the cache.

    vLLM keeps its KV, and its slot, for as long as the client stays connected. Its figures are as of the last step of its engine, so
    that another stream has to be heard to learn them.
    """
    async with endpoint.client() as silent, endpoint.client() as other:
        await silent.start()
        await silent.append(sound(2.0, 1))
        await silent.receive_until("transcription.delta")
        assert await endpoint.until(endpoint.kv_usage, bool, NEVER_SECONDS), "it held some"
        end = asyncio.get_running_loop().time() + NEVER_SECONDS
        while asyncio.get_running_loop().time() < end:
            await say(other, sound(0.2, 2))
            await other.receive_until("transcription.done")
            if await endpoint.until(endpoint.kv_usage, lambda used: not used, at_most_seconds=0.3):
                return []
    return [f"after {NEVER_SECONDS:g} s of silence a stream still holds KV"]


async def audio_without_a_commit(endpoint: Endpoint) -> list[str]:
    """Twice as much audio as our server was told to keep, never committed: at some point the client is told.

    vLLM has no such bound. It keeps whatever comes, in its first process, and says nothing.
    """
    minute = sound(60.0, 1)
    minutes = round(2 * UNCOMMITTED_SECONDS / 60)
    async with endpoint.client() as client:
        for _ in range(minutes):
            await client.append(minute, chunk_bytes=len(minute) // 4)
        await client.send("synchronise")
        frames = await client.receive_until("error")
    if "synchronise" in frames[-1]["error"]:
        return [f"{minutes} minutes of audio without a commit are taken without a word"]
    return []


async def more_audio_than_the_model_is_long(endpoint: Endpoint) -> list[str]:
    """A minute of audio for a model of 400 tokens, of which a second takes 12.5: all of it is heard, or an error tells that it is not.

    vLLM ends the utterance with the model's length as if it had been heard to its end. The checkpoint says a word in every step.
    """
    seconds = 60.0
    async with endpoint.client() as client:
        await say(client, sound(seconds, 3))
        frames = await client.receive_until("transcription.done", seconds=60)
    words = len(frames[-1]["text"].split())
    told = any(frame["type"] == "error" for frame in frames)
    # where segments meet, some words of both may be taken for one another
    if words < 0.85 * seconds * STEPS_PER_SECOND and not told:
        return [f"{words} words of {seconds:g} s, and no error"]
    return []


async def an_utterance_without_audio(endpoint: Endpoint) -> list[str]:
    """Its audio ends as soon as it has begun, or before: an utterance that is done, and empty, and the next one is heard.

    vLLM answers one that has begun. An end without a beginning gets no answer there, and the next utterance takes it for its own.
    """
    faults = []
    for name, commits in (("begun and ended", [False, True]), ("ended only", [True])):
        async with endpoint.client() as client:
            for final in commits:
                await client.send("input_audio_buffer.commit", final=final)
            done = await frame_of(client, "transcription.done")
            if done is None:
                faults.append(f"{name}: no answer")
            elif done["text"]:
                faults.append(f"{name}: text without audio")
            if not await still_hears(client):
                faults.append(f"{name}: the next utterance is not heard")
    return faults


ODD_MESSAGES: dict[str, str | bytes] = {
    "binary frame": sound(0.1, 1),
    "a list": "[]",
    "a string": '"x"',
    "no JSON": "{",
    "no type": "{}",
    "append without audio": json.dumps({"type": "input_audio_buffer.append"}),
    "append of a number": json.dumps({"type": "input_audio_buffer.append", "audio": 7}),
    "append of half a sample": json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}),
    "update without a model": json.dumps({"type": "session.update"}),
    "commit of a word": json.dumps({"type": "input_audio_buffer.commit", "final": "perhaps"}),
}
LEAK = re.compile(r"object has no attribute|validation error|pydantic|Traceback|Error\b")
"""What is said to programmers of the server, not to those of the client."""


async def messages_that_make_no_sense(endpoint: Endpoint) -> list[str]:
    """Each is answered with a code and a sentence for the client's author, and the connection goes on.

    vLLM does well with four of them. A binary frame ends its connection without a close frame, and what it says to the other five is
    what Python said to it.
    """
    faults = []
    for name, message in ODD_MESSAGES.items():
        async with endpoint.client() as client:
            await client.send_raw(message)
            try:
                answer = await frame_of(client, "error")
                if answer is None or not answer["code"]:
                    faults.append(f"{name}: no answer")
                elif LEAK.search(answer["error"]):
                    faults.append(f"{name}: Python's words")
                if not await still_hears(client):
                    faults.append(f"{name}: the next utterance is not heard")
            except ConnectionClosed:
                faults.append(f"{name}: the connection is lost")
    return faults


async def a_commit_before_the_model_is_named(endpoint: Endpoint) -> list[str]:
    """Is refused in words. So does vLLM."""
    async with endpoint.client(validated=False) as client:
        await client.start()
        answer = await frame_of(client, "error")
    return [] if answer and answer["code"] == "model_not_validated" else [f"answered with {answer}"]


async def an_abrupt_disconnect(endpoint: Endpoint) -> list[str]:
    """Eight clients vanish without a close frame: within a second nothing runs and no KV is held. So it is with vLLM."""
    took: list[float] = []
    for _ in range(3):  # one quiet moment of the machine is enough
        async with endpoint.clients(8) as clients:
            for number, client in enumerate(clients):
                await client.start()
                await client.append(sound(2.0, number))
            for client in clients:
                await client.receive_until("transcription.delta")
            assert await endpoint.until(endpoint.kv_usage, bool, NEVER_SECONDS), "they held some"
            began = time.monotonic()
            for client in clients:
                client.socket.transport.abort()
            for series in (endpoint.running, endpoint.kv_usage):
                await endpoint.until(series, lambda value: not value, NEVER_SECONDS)
            took.append(time.monotonic() - began)
    return [] if min(took) < 1.0 else [f"slots and KV are held for {min(took):.1f} s"]


async def neighbours(endpoint: Endpoint) -> list[str]:
    """What a stream says among others is what it says alone. So it is with vLLM, in float32."""
    pcms = [sound(1.0 + 0.3 * seed, seed) for seed in range(6)]
    async with endpoint.clients(len(pcms)) as clients:
        alone = []
        for client, pcm in zip(clients, pcms, strict=True):
            await say(client, pcm)
            alone.append(await text_of(client))
        for client, pcm in zip(clients, pcms, strict=True):
            await say(client, pcm)
        together = [await text_of(client) for client in clients]
    assert len(set(alone)) == len(pcms), "the audio makes a difference"
    return [f"stream {n}" for n, (one, among) in enumerate(zip(alone, together, strict=True)) if one != among]


# ---- what they are made of


async def say(client: Realtime, pcm: bytes) -> None:
    """Send a whole utterance."""
    await client.start()
    await client.append(pcm)
    await client.finish()


async def text_of(client: Realtime) -> str:
    """The text of the next utterance."""
    text: str = (await client.receive_until("transcription.done"))[-1]["text"]
    return text


async def frame_of(client: Realtime, kind: str) -> Frame | None:
    """The next frame of this type; None if there is none in time."""
    try:
        async with asyncio.timeout(NEVER_SECONDS):
            return (await client.receive_until(kind, NEVER_SECONDS))[-1]
    except TimeoutError:
        return None


async def still_hears(client: Realtime) -> bool:
    """Whether an utterance comes back with text."""
    await say(client, sound(0.5, 1))
    done = await frame_of(client, "transcription.done")
    return done is not None and bool(done["text"])


# ---- who has which

DEFECTS: dict[Scenario, list[str]] = {
    streams_beyond_the_slots: ["17 of 33 streams are neither heard nor refused"],
    utterances_sent_back_to_back: ["utterance 2 does not come back"],
    a_stream_that_stops_sending: ["after 5 s of silence a stream still holds KV"],
    audio_without_a_commit: ["4 minutes of audio without a commit are taken without a word"],
    more_audio_than_the_model_is_long: ["361 words of 60 s, and no error"],
    an_utterance_without_audio: ["ended only: no answer", "ended only: the next utterance is not heard"],
    messages_that_make_no_sense: [
        "binary frame: the connection is lost",
        "a list: Python's words",
        "a string: Python's words",
        "append without audio: Python's words",
        "append of a number: Python's words",
        "commit of a word: Python's words",
    ],
}
"""Scenarios that vLLM 0.32 does not pass, and what is wrong there."""

VIRTUES: list[Scenario] = [a_commit_before_the_model_is_named, an_abrupt_disconnect, neighbours]
"""Those that it does."""


def name_of(scenario: Scenario) -> str:
    return scenario.__name__


@pytest.mark.parametrize("scenario", [*DEFECTS, *VIRTUES], ids=name_of)
async def test_ours_has_no_fault(our_endpoint: Endpoint, scenario: Scenario) -> None:
    assert await scenario(our_endpoint) == []


@pytest.mark.parametrize("scenario", DEFECTS, ids=name_of)
async def test_vllms_own_has_the_defect(their_endpoint: Endpoint, scenario: Scenario) -> None:
    assert await scenario(their_endpoint) == DEFECTS[scenario]
