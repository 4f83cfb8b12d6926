"""``StreamingRecognize`` against a real server: binding, chunks, results and how streams end."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from tests.end_to_end.conftest import Serve
from tests.end_to_end.rpc_clients import (
    OPEN,
    SECONDS,
    address,
    chunks,
    create,
    ended,
    new_id,
    refusal,
    stream,
    stub,
    transcribe,
)
from tests.end_to_end.speech import distinct_words, sentence
from wire.scripted import speak
from wire.stt.stt_pb2 import AudioChunk, VADMode
from wire.words import TimedWord

ROOT = Path(__file__).parents[2]


def script(**more: Any) -> str:
    """The engine says these two words over every utterance, whatever its audio."""
    words = [
        {"text": text, "start": start, "end": end} for text, start, end in (("alpha", 0.4, 0.7), ("beta", 0.8, 1.1))
    ]
    return json.dumps({"words": words, **more})


def voice(rate: int = 16_000) -> bytes:
    """A spoken sentence of 2.2 s, which a voice detector takes for speech from its beginning to its end."""
    samples, own = soundfile.read(
        io.BytesIO((ROOT / "datasets/spoken-en/flac/en-032-kal16.flac").read_bytes()), dtype="float32"
    )
    assert own == 16_000
    if rate != own:
        import soxr

        samples = soxr.resample(samples, own, rate)
    pcm: bytes = (np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()
    return pcm


def silence(seconds: float, rate: int = 16_000) -> bytes:
    return bytes(round(seconds * rate) * 2)


class Live:
    """A stream whose client goes on when it likes."""

    def __init__(self, backend: Any, **metadata: str) -> None:
        self.call = backend.StreamingRecognize(metadata=tuple((k.replace("_", "-"), v) for k, v in metadata.items()))

    async def send(self, pcm: bytes = b"", **fields: Any) -> None:
        async with asyncio.timeout(SECONDS):
            await self.call.write(AudioChunk(pcm16=pcm, **fields))

    async def result(self) -> Any:
        async with asyncio.timeout(SECONDS):
            return await self.call.read()

    async def refused(self) -> str:
        """Status and code of the end, which comes while this side stays open."""
        end = await ended(self.call)
        return f"{end.code.name} {end.details.split(' ')[0]}"


# ---- binding


@pytest.mark.spec("grpc-25")
@pytest.mark.parametrize("name", ["session-id", "session_id"])
async def test_metadata_binds_and_is_trimmed(serve: Serve, name: str) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        end = await stream(backend, chunks(sentence("bound")), {name: f"  {session_id} "})
        assert (end.finals, end.code) == (["bound"], grpc.StatusCode.OK)


@pytest.mark.spec("grpc-25", "grpc-27")
async def test_metadata_binds_before_any_audio(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        assert await Live(backend, session_id="nobody's").refused() == "UNAUTHENTICATED ERR1004"


@pytest.mark.spec("grpc-26")
async def test_the_first_chunk_binds_and_later_ones_may_omit_the_id(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        sent = chunks(sentence("first", "chunk"), session_id)
        for chunk in sent[1:]:
            chunk.session_id = ""
        assert (await stream(backend, sent)).finals == ["first chunk"]


@pytest.mark.spec("grpc-27")
async def test_an_unknown_id_is_refused_while_the_client_keeps_its_side_open(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        for session_id in ("unknown", ""):
            live = Live(backend)
            await live.send(bytes(320), session_id=session_id)
            assert await live.refused() == "UNAUTHENTICATED ERR1004"
        assert (await stream(backend, [])).details.startswith("ERR1004 ")


@pytest.mark.spec("grpc-28")
async def test_chunks_of_another_session_are_ignored(serve: Serve) -> None:
    server = serve(*OPEN)
    async with stub(server) as backend:
        session_id, _ = await create(backend)
        mine, other = chunks(sentence("mine"), session_id), chunks(sentence("theirs"), "another")
        end = await stream(backend, [mine[0], *other, *mine[1:]], {"session-id": session_id})
        assert end.finals == ["mine"]
    assert "chunk of another session ignored" in server.log()


@pytest.mark.spec("grpc-29")
async def test_every_chunk_needs_the_token(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        for wrong in ("", "0" * 32, "ü"):
            session_id, response = await create(backend, require_token=True)
            live = Live(backend, session_id=session_id)
            await live.send(bytes(320), session_token=response.token)
            await live.send(bytes(320), session_token=wrong)
            assert await live.refused() == "PERMISSION_DENIED ERR1005"
            again = await stream(backend, chunks(bytes(320), session_id, token=response.token))
            assert again.details.startswith("ERR1004 "), "the session is gone"
        assert (await transcribe(backend, sentence("right"), require_token=True)).finals == ["right"]


@pytest.mark.spec("grpc-30")
async def test_a_session_ends_with_its_stream(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        assert (await stream(backend, chunks(sentence("once"), session_id))).finals == ["once"]
        assert (await stream(backend, chunks(sentence("twice"), session_id))).details.startswith("ERR1004 ")
        await create(backend, session_id)
        assert (await stream(backend, chunks(sentence("again"), session_id))).finals == ["again"]


@pytest.mark.spec("grpc-31")
async def test_of_two_streams_on_one_session_the_second_is_refused(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(sentence("first") + silence(1.0))
        assert (await live.result()).text == "first"
        assert (await stream(backend, chunks(sentence("second"), session_id))).details.startswith("ERR1004 ")
        await live.send(is_final=True)
        assert (await ended(live.call)).finals == ["first"]


# ---- audio


@pytest.mark.spec("grpc-32")
@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
async def test_audio_of_any_rate_is_brought_to_the_engines(serve: Serve, rate: int) -> None:
    async with stub(serve(*OPEN, "--script", script())) as backend:
        end = await transcribe(backend, silence(2.0, rate), rate=rate)
        assert end.finals == ["alpha beta"]
        assert end.results[-1].start_sec == pytest.approx(0.4)
        short = await transcribe(backend, silence(0.75, rate), rate=rate)
        assert short.finals == ["alpha"], "so much audio and no more"


@pytest.mark.spec("grpc-32")
async def test_audio_that_names_no_rate_has_the_last_one_or_the_servers(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--script", script(), "--grpc-sample-rate", "8000")) as backend:
        for rates in ([0, 0, 0], [8_000, 0, 0], [16_000, 8_000, 0]):
            session_id, _ = await create(backend)
            seconds = 0.25
            sent = [
                AudioChunk(pcm16=silence(seconds, rate or 8_000), sample_rate=rate, session_id=session_id)
                for rate in rates
            ]
            sent[-1].is_final = True
            end = await stream(backend, sent)
            assert end.finals == ["alpha"], rates


@pytest.mark.spec("grpc-33")
async def test_a_chunk_that_is_too_large_is_refused_with_both_numbers(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-max-chunk-ms", "200")) as backend:
        for rate, most in ((16_000, 6_400), (8_000, 3_200)):
            session_id, _ = await create(backend)
            live = Live(backend, session_id=session_id)
            await live.send(bytes(most), sample_rate=rate)
            await live.send(bytes(most + 2), sample_rate=rate)
            end = await ended(live.call)
            assert end.code is grpc.StatusCode.INVALID_ARGUMENT
            assert end.details.startswith("ERR1007 ")
            assert str(most + 2) in end.details
            assert str(most) in end.details.replace(str(most + 2), "")


@pytest.mark.spec("grpc-34")
@pytest.mark.parametrize(
    "fields", [{"pcm": b"\x00"}, {"pcm": bytes(320), "sample_rate": 2**31 - 1}, {"sample_rate": 1}]
)
async def test_audio_that_makes_no_sense_is_refused(serve: Serve, fields: Any) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(**fields)
        assert await live.refused() == "INVALID_ARGUMENT ERR1007"


@pytest.mark.spec("grpc-34")
async def test_a_chunk_that_is_none_is_refused_with_a_code(serve: Serve) -> None:
    server = serve(*OPEN)
    async with stub(server) as backend, grpc.aio.insecure_channel(address(server)) as channel:
        session_id, _ = await create(backend)
        call: Any = channel.stream_stream("/stt.STTBackend/StreamingRecognize")(metadata=(("session-id", session_id),))
        await call.write(b"\xff\xff\xff")
        assert (await ended(call)).details.startswith("ERR1007 ")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.spec("grpc-37")
async def test_chunks_may_be_empty(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        empty = AudioChunk(session_id=session_id)
        end = await stream(backend, [empty, *chunks(sentence("between"), session_id, final="never"), empty])
        assert end.finals == ["between"]


# ---- results


@pytest.mark.spec("grpc-38", "grpc-39", "grpc-40", "grpc-41")
@pytest.mark.parametrize("final", ["last", "empty", "never"])
async def test_a_clip_has_partials_and_then_one_final(serve: Serve, final: str) -> None:
    said = distinct_words(8, seed=1)
    async with stub(serve(*OPEN)) as backend:
        end = await transcribe(backend, sentence(*said), final=final)
        assert end.code is grpc.StatusCode.OK
        assert end.finals == [" ".join(said)]
        assert end.results[-1].is_final
        assert end.partials
        for partial in end.partials:
            assert " ".join(said).startswith(partial)


@pytest.mark.spec("grpc-38")
async def test_the_batch_client_sends_one_chunk_with_everything(serve: Serve) -> None:
    said = distinct_words(30, seed=2)
    async with stub(serve(*OPEN, "--grpc-max-chunk-ms", "0")) as backend:
        session_id, _ = await create(backend)
        end = await stream(backend, chunks(sentence(*said), session_id, chunk_ms=3_600_000), {"session-id": session_id})
        assert end.finals == [" ".join(said)]


@pytest.mark.spec("grpc-38")
async def test_after_the_final_chunk_the_server_ends_the_stream(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(sentence("done"), is_final=True)
        end = await ended(live.call)  # this side stays open
        assert (end.finals, end.code) == (["done"], grpc.StatusCode.OK)


@pytest.mark.spec("grpc-41")
async def test_partials_come_while_audio_still_arrives_and_no_closer_than_the_interval(serve: Serve) -> None:
    said = distinct_words(10, seed=3)
    async with stub(serve(*OPEN, "--grpc-partial-decode-interval-sec", "1")) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(sentence(*said[:5]))
        assert (await live.result()).text.startswith(said[0])
        await live.send(sentence(*said[5:]), is_final=True)
        end = await ended(live.call)
        ends = [result.end_sec for result in end.results if not result.is_final]
        assert all(later - earlier >= 1.0 - 1e-6 for earlier, later in pairwise(ends))
        assert len(ends) <= 3


@pytest.mark.spec("grpc-41")
async def test_committed_and_unstable_text_are_the_text(serve: Serve) -> None:
    async with stub(serve(*OPEN, engine="sphinx")) as backend:
        end = await transcribe(backend, voice())
        assert end.finals
        for result in end.results:
            assert result.committed_text + result.unstable_text == result.text
        assert end.results[-1].unstable_text == ""
        assert end.results[-1].committed_text == end.finals[0]


@pytest.mark.spec("grpc-42", "grpc-43", "grpc-48")
async def test_silence_ends_utterances_and_the_stream_goes_on(serve: Serve) -> None:
    """Two sentences with a second of silence behind each: the text of neither is final when silence ends it."""
    one = voice() + silence(1.0)
    async with stub(serve(*OPEN, "--script", script(), "--grpc-partial-decode-interval-sec", "0")) as backend:
        session_id, _ = await create(backend, vad_threshold_override=0.5, vad_silence=0.6)
        live = Live(backend, session_id=session_id)
        for chunk in chunks(one + one, session_id, final="never"):
            await live.call.write(chunk)
        first, second = await live.result(), await live.result()
        assert [(r.text, r.is_final) for r in (first, second)] == [("alpha beta", False)] * 2
        assert first.start_sec == pytest.approx(0.4)
        assert first.end_sec == pytest.approx(1.1)
        assert 2.2 < second.start_sec < 3.6, "counted from the start of the stream"
        await live.send(is_final=True)
        end = await ended(live.call)
        assert end.finals == ["alpha beta"], "what was said last, once more"
        assert end.results[0].start_sec == second.start_sec
        assert end.code is grpc.StatusCode.OK


@pytest.mark.spec("grpc-47")
@pytest.mark.parametrize("name", ["emit_final_on_vad", "final_on_vad", "vad_final", ""])
async def test_utterances_that_silence_ends_can_be_final(serve: Serve, name: str) -> None:
    options = () if name else ("--grpc-emit-final-on-vad",)
    one = voice() + silence(1.0)
    async with stub(serve(*OPEN, "--script", script(), *options)) as backend:
        attributes = {name: "true"} if name else {}
        end = await transcribe(backend, one + one, vad_threshold_override=0.5, vad_silence=0.6, attributes=attributes)
        assert end.finals == ["alpha beta", "alpha beta"]


@pytest.mark.spec("grpc-44")
async def test_auto_end_ends_the_stream_after_the_first_utterance(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--script", script())) as backend:
        session_id, _ = await create(
            backend, vad_mode=VADMode.VAD_AUTO_END, vad_threshold_override=0.5, vad_silence=0.6
        )
        live = Live(backend, session_id=session_id)

        async def speak_on() -> None:
            for chunk in chunks(voice() + silence(1.0), session_id, final="never"):
                await live.call.write(chunk)

        await speak_on()
        end = await ended(live.call)  # the client has not ended
        assert [(r.text, r.is_final) for r in end.results] == [("alpha beta", True)]
        assert end.code is grpc.StatusCode.OK


@pytest.mark.spec("grpc-44")
async def test_auto_end_without_silence_ends_with_the_audio(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--script", script())) as backend:
        end = await transcribe(backend, voice(), vad_mode=VADMode.VAD_AUTO_END, vad_threshold_override=0.5)
        assert [(r.text, r.is_final) for r in end.results] == [("alpha beta", True)]


@pytest.mark.spec("grpc-45")
async def test_with_a_threshold_of_zero_everything_is_one_utterance(serve: Serve) -> None:
    one = voice() + silence(1.5)
    async with stub(serve(*OPEN, "--script", script())) as backend:
        end = await transcribe(backend, one + one, vad_threshold_override=0.0, vad_silence=0.3)
        assert end.finals == ["alpha beta"]


@pytest.mark.spec("grpc-46")
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("final", ["last", "never"])
async def test_silence_gives_nothing_and_is_no_error(serve: Serve, threshold: float, final: str) -> None:
    async with stub(serve(*OPEN)) as backend:
        end = await transcribe(backend, silence(3.0), final=final, vad_threshold_override=threshold)
        assert (end.results, end.code) == ([], grpc.StatusCode.OK)
        session_id, _ = await create(backend)
        end = await stream(backend, [], {"session-id": session_id})
        assert (end.results, end.code) == ([], grpc.StatusCode.OK)


@pytest.mark.spec("grpc-48")
async def test_times_count_from_the_start_of_the_stream(serve: Serve) -> None:
    audio = speak([TimedWord("late", 2.0, 2.5)], 3.0)
    async with stub(serve(*OPEN)) as backend:
        final = (await transcribe(backend, audio)).results[-1]
        assert [final.start_sec, final.end_sec] == pytest.approx([2.0, 2.5])


@pytest.mark.spec("grpc-49")
async def test_utterances_that_are_too_quiet_are_dropped(serve: Serve) -> None:
    quiet = (np.frombuffer(voice(), "<i2") // 64).astype("<i2").tobytes()
    options = (
        *OPEN,
        "--script",
        script(),
        "--grpc-speech-rms-threshold",
        "0.02",
        "--grpc-partial-decode-interval-sec",
        "0",
    )
    async with stub(serve(*options)) as backend:
        loud = await transcribe(backend, voice(), final="never")
        assert loud.finals == ["alpha beta"]
        assert (await transcribe(backend, quiet, final="never")).results == [], "half-close: held against the gate"
        assert (await transcribe(backend, quiet, final="last")).finals == ["alpha beta"], "is_final: not"


@pytest.mark.spec("grpc-49")
async def test_a_quiet_utterance_that_silence_ends_is_dropped_and_the_stream_goes_on(serve: Serve) -> None:
    options = (
        *OPEN,
        "--script",
        script(),
        "--grpc-speech-rms-threshold",
        "0.9",
        "--grpc-partial-decode-interval-sec",
        "0",
    )
    async with stub(serve(*options)) as backend:
        audio = voice() + silence(1.0) + sentence("loud", "enough")
        end = await transcribe(backend, audio, vad_threshold_override=0.5, vad_silence=0.6)
        assert end.finals == ["loud enough"]
        assert end.partials == []


@pytest.mark.spec("grpc-58")
async def test_a_failing_engine_ends_the_stream_with_its_reason(serve: Serve) -> None:
    faulty = json.dumps({"faults": [{"at": 1.0, "message": "the tape is torn"}]})
    async with stub(serve(*OPEN, "--script", faulty)) as backend:
        end = await transcribe(backend, sentence("one", "two", "three", "four"))
        assert end.code is grpc.StatusCode.INTERNAL
        assert end.details.startswith("ERR2002 ")
        assert "the tape is torn" in end.details
        assert end.trailing["stt-decode-count"].isdigit()


@pytest.mark.spec("grpc-62", "grpc-63")
async def test_trailing_metadata_tells_where_the_time_went(serve: Serve) -> None:
    names = ("buffer-wait", "queue-wait", "inference", "response-emit", "total")
    async with stub(serve(*OPEN, "--script", '{"final_latency_ms": 300}')) as backend:
        end = await transcribe(backend, sentence("measured", "words"))
        times = [end.trailing[f"stt-decode-{name}-sec"] for name in names]
        assert all(len(time.partition(".")[2]) == 6 for time in times)
        assert sum(map(float, times[:4])) == pytest.approx(float(times[4]), abs=1e-6)
        assert float(times[2]) >= 0.29, "the engine took 0.3 s for the end"
        assert int(end.trailing["stt-decode-count"]) == len(end.results)
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(b"\x00")
        refused = await ended(live.call)
        assert refused.details.startswith("ERR1007 ")
        assert refused.trailing["stt-decode-total-sec"] == "0.000000"
        assert refused.trailing["stt-decode-count"] == "0"
        unbound = await stream(backend, chunks(bytes(320), new_id()))
        assert not [name for name in unbound.trailing if name.startswith("stt-")]


@pytest.mark.spec("grpc-41")
async def test_many_streams_at_once_each_get_their_own_words(serve: Serve) -> None:
    async def one(backend: Any, number: int) -> None:
        said = distinct_words(6, seed=100 + number)
        end = await transcribe(backend, sentence(*said), final=("last", "empty", "never")[number % 3])
        assert end.finals == [" ".join(said)]

    async with stub(serve(*OPEN)) as backend, asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(one(backend, number))


@pytest.mark.spec("grpc-41")
async def test_the_sentence_is_heard_by_an_engine_that_listens(serve: Serve) -> None:
    """The reference's file client: paced chunks of 100 ms with metadata, then an empty one that is final."""

    async def paced(session_id: str) -> AsyncIterator[AudioChunk]:
        for chunk in chunks(voice(8_000), session_id, rate=8_000, final="empty"):
            yield chunk
            await asyncio.sleep(0.1)  # as a microphone gives it

    async with stub(serve(*OPEN, engine="sphinx")) as backend:
        session_id, _ = await create(backend, vad_threshold_override=0.5, language_code="en", vad_silence=0.8)
        end = await ended(backend.StreamingRecognize(paced(session_id), metadata=(("session-id", session_id),)))
        assert end.code is grpc.StatusCode.OK
        assert len(end.finals) == 1
        assert end.finals[0].strip()
        assert end.results[0].language == "English"


@pytest.mark.spec("grpc-64")
async def test_a_message_larger_than_the_bound_is_refused_by_the_transport(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-max-receive-message-bytes", "2048", "--grpc-max-chunk-ms", "0")) as backend:
        session_id, _ = await create(backend)
        assert (await stream(backend, chunks(sentence("big"), session_id))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await refusal(create(backend, "x" * 4096)))[0] == "RESOURCE_EXHAUSTED"
