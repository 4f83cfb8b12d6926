"""Small servers that speak as commercial services document it, and refuse what those would refuse. They hear `tones`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from tests.harness.tones import Ear
from wire.words import TimedWord

KEY = "s3cret"


class Refusal(Exception):  # noqa: N818 - it is no fault of ours
    """The connection ends with this close code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass
class Service:
    """One of them on a free port. ``seen`` is what clients asked for, ``faults`` what they were refused for."""

    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    heard: list[tuple[str, ...]] = field(default_factory=list)  # the words of each stream, in order of their ends
    streams_at_once: int | None = None
    open_now: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


Handler = Callable[[Service, ServerConnection, Mapping[str, str]], Awaitable[None]]
Check = Callable[[Service, str, Mapping[str, str], str], tuple[HTTPStatus, dict[str, Any]] | None]


@asynccontextmanager
async def service(handler: Handler, check: Check, **settings: Any) -> AsyncIterator[Service]:
    """``check`` may refuse a handshake: it gets path, query and the Authorization header."""
    state = Service(streams_at_once=settings.pop("streams_at_once", None), settings=settings)

    def admit(socket: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        refused = check(state, parts.path, dict(parse_qsl(parts.query)), request.headers.get("Authorization", ""))
        if refused is None and state.streams_at_once is not None and state.open_now >= state.streams_at_once:
            refused = HTTPStatus.TOO_MANY_REQUESTS, {"err_msg": "too many streams at once"}
        if refused is None:
            state.open_now += 1
            return None
        state.faults.append(f"{refused[0]} {refused[1]}")
        return socket.respond(refused[0], json.dumps(refused[1]))

    async def serve_one(socket: ServerConnection) -> None:
        assert socket.request is not None
        try:
            await handler(state, socket, dict(parse_qsl(urlsplit(socket.request.path).query)))
        except Refusal as refusal:
            state.faults.append(refusal.reason)
            await socket.close(refusal.code, refusal.reason)
        finally:
            state.open_now -= 1

    async with serve(serve_one, "127.0.0.1", 0, process_request=admit) as server:
        state.port = next(iter(server.sockets)).getsockname()[1]
        yield state


# ---- Deepgram ----------------------------------------------------------------------------------------------------

_DEEPGRAM_PARAMETERS = frozenset(
    {
        *("model", "version", "language", "language_hint", "encoding", "sample_rate", "channels", "interim_results"),
        *("endpointing", "utterance_end_ms", "vad_events", "punctuate", "smart_format", "numerals", "dictation"),
        *("profanity_filter", "keyterm", "keywords", "replace", "redact", "tag", "mip_opt_out", "extra"),
    }
)


def check_deepgram(
    state: Service, path: str, query: Mapping[str, str], authorization: str
) -> tuple[HTTPStatus, dict[str, Any]] | None:
    def bad(why: str) -> tuple[HTTPStatus, dict[str, Any]]:
        return HTTPStatus.BAD_REQUEST, {"err_code": "Bad Request", "err_msg": why, "request_id": "r"}

    if path != "/v1/listen":
        return HTTPStatus.NOT_FOUND, {"err_msg": "no such path"}
    if authorization != f"Token {KEY}":
        return HTTPStatus.UNAUTHORIZED, {"err_code": "INVALID_AUTH", "err_msg": "Invalid credentials."}
    unknown = set(query) - _DEEPGRAM_PARAMETERS
    if unknown:
        return bad(f"unknown parameters {sorted(unknown)}")
    if query.get("encoding") != "linear16" or not query.get("sample_rate", "").isdecimal():
        return bad("raw audio needs encoding and sample_rate")
    if query.get("channels", "1") != "1" or query.get("interim_results", "false") not in ("true", "false"):
        return bad("channels or interim_results")
    state.seen.append(dict(query))
    return None


async def speak_deepgram(state: Service, socket: ServerConnection, query: Mapping[str, str]) -> None:
    """Interim results as words come, a final one every three words (with word times), Metadata and a close at the end.

    With the setting ``silent_finalize`` there is no answer to Finalize, as happens when nothing is left in the buffer.
    """
    ear, final_from, shown = Ear(int(query["sample_rate"])), 0, ""

    def results(words: list[TimedWord], **marks: Any) -> str:
        text = " ".join(word.text for word in words)
        timed = [
            {
                "word": word.text,
                "start": word.start,
                "end": word.end,
                "confidence": 0.9,
                "punctuated_word": word.text.title(),
            }
            for word in words
        ]
        return json.dumps(
            {
                "type": "Results",
                "channel_index": [0, 1],
                "duration": ear.seconds,
                "start": words[0].start if words else ear.seconds,
                "is_final": False,
                "speech_final": False,
                "channel": {"alternatives": [{"transcript": text, "confidence": 0.9, "words": timed}]},
                "metadata": {"request_id": "r", "model_info": {"name": query.get("model", "")}, "model_uuid": "u"},
                **marks,
            }
        )

    async for frame in socket:
        if isinstance(frame, bytes):
            if not frame:
                raise Refusal(1008, "DATA-0000: an empty binary frame closes the stream")
            ear.hear(frame)
            rest = ear.words[final_from:]
            if len(rest) >= 3:
                await socket.send(results(rest[:3], is_final=True))
                final_from, shown = final_from + 3, ""
                rest = rest[3:]
            sounding = [*rest, *([ear.sounding] if ear.sounding else [])]
            text = " ".join(word.text for word in sounding)
            if text and text != shown and query.get("interim_results") == "true":
                await socket.send(results(sounding))
                shown = text
            continue
        match json.loads(frame):
            case {"type": "KeepAlive"}:
                pass
            case {"type": "Finalize"}:
                ear.end()
                rest = ear.words[final_from:]
                final_from = len(ear.words)
                if rest or not state.settings.get("silent_finalize"):
                    await socket.send(results(rest, is_final=True, from_finalize=True))
            case {"type": "CloseStream"}:
                ear.end()
                if ear.words[final_from:]:
                    await socket.send(results(ear.words[final_from:], is_final=True))
                state.heard.append(tuple(word.text for word in ear.words))
                summary = {"transaction_key": "deprecated", "request_id": "r", "sha256": "0", "created": "now"}
                await socket.send(json.dumps({"type": "Metadata", **summary, "duration": ear.seconds, "channels": 1}))
                return
            case other:
                await socket.send(
                    json.dumps({"type": "Error", "variant": "SchemaError", "description": f"not known: {other}"})
                )


# ---- OpenAI ------------------------------------------------------------------------------------------------------


def check_openai(
    _state: Service, path: str, query: Mapping[str, str], authorization: str
) -> tuple[HTTPStatus, dict[str, Any]] | None:
    if path != "/v1/realtime":
        return HTTPStatus.NOT_FOUND, {"error": {"message": "no such path"}}
    if authorization != f"Bearer {KEY}":
        return HTTPStatus.UNAUTHORIZED, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}
    if query != {"intent": "transcription"}:
        return HTTPStatus.BAD_REQUEST, {
            "error": {"message": f"a transcription session has no other parameters: {query}"}
        }
    return None


async def speak_openai(state: Service, socket: ServerConnection, _query: Mapping[str, str]) -> None:
    """Deltas as words come; with turn detection a piece ends with every third word, else only where the client commits."""
    count = 0

    async def send(kind: str, **fields: Any) -> None:
        nonlocal count
        count += 1
        await socket.send(json.dumps({"type": kind, "event_id": f"event_{count}", **fields}))

    async def fault(message: str, code: str) -> None:
        state.faults.append(code)
        await send("error", error={"type": "invalid_request_error", "code": code, "message": message, "param": None})

    ear, session = Ear(24_000), None
    turns, piece, said, buffered_bytes = None, 1, 0, 0  # said: words of this piece that were told in deltas
    taken = 0  # words in pieces before this one
    transcription = "conversation.item.input_audio_transcription"

    async def commit() -> None:
        nonlocal piece, said, taken, buffered_bytes
        item, words = f"item_{piece}", [word.text for word in ear.words[taken:]]
        await send(
            "input_audio_buffer.committed", item_id=item, previous_item_id=f"item_{piece - 1}" if piece > 1 else None
        )
        await tell(item, words)
        usage = {"type": "tokens", "input_tokens": 10, "output_tokens": len(words), "total_tokens": 10 + len(words)}
        await send(f"{transcription}.completed", item_id=item, content_index=0, transcript=" ".join(words), usage=usage)
        piece, said, taken, buffered_bytes = piece + 1, 0, len(ear.words), 0

    async def tell(item: str, words: list[str]) -> None:
        nonlocal said
        for index in range(said, len(words)):
            await send(
                f"{transcription}.delta",
                item_id=item,
                content_index=0,
                delta=("" if index == 0 else " ") + words[index],
            )
        said = len(words)

    await send("session.created", session={"type": "transcription", "id": "sess_1"})
    async for frame in socket:
        if isinstance(frame, bytes):
            raise Refusal(1003, "binary frames are not taken")
        event = json.loads(frame)
        match event.get("type"):
            case "session.update":
                problem = _openai_session_problem(event.get("session"))
                if problem:
                    await fault(problem, "invalid_value")
                    continue
                session = event["session"]
                turns = session["audio"]["input"].get("turn_detection")
                state.seen.append(session)
                await send("session.updated", session=session)
            case "input_audio_buffer.append" if session is not None:
                try:
                    pcm = base64.b64decode(event["audio"], validate=True)
                except (KeyError, binascii.Error):
                    await fault("Invalid 'audio'", "invalid_value")
                    continue
                if len(pcm) % 2:
                    await fault("Invalid 'audio': not whole samples", "invalid_value")
                    continue
                ear.hear(pcm)
                buffered_bytes += len(pcm)
                await tell(f"item_{piece}", [word.text for word in ear.words[taken:]])
                if turns and len(ear.words) - taken >= 3:
                    await commit()
            case "input_audio_buffer.commit":
                ear.end()
                silent = turns is not None and len(ear.words) == taken  # turn detection keeps no silence
                if buffered_bytes < 4800 or silent:
                    await fault(
                        "Error committing input audio buffer: buffer too small.", "input_audio_buffer_commit_empty"
                    )
                else:
                    await commit()
            case "input_audio_buffer.clear":
                state.heard.append(tuple(word.text for word in ear.words))
                buffered_bytes = 0
                await send("input_audio_buffer.cleared")
            case other:
                await fault(f"Invalid event {other!r} at this point", "invalid_event")


def _openai_session_problem(session: Any) -> str | None:
    match session:
        case {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, **rest}}}:
            unknown = {*map(str, rest)} - {"transcription", "turn_detection", "noise_reduction"}
        case _:
            return "Invalid session: type transcription and 24 kHz PCM are expected"
    if unknown:
        return f"Unknown parameters: {sorted(unknown)}"
    fields = {"model", "language", "languages", "prompt", "keywords", "delay"}
    transcription = rest.get("transcription")
    if not isinstance(transcription, dict) or "model" not in transcription or set(transcription) - fields:
        return f"Invalid transcription: {transcription}"
    if transcription["model"].startswith("gpt-live") and rest.get("turn_detection") is not None:
        return f"Turn detection is not supported with {transcription['model']}"
    if "delay" in transcription and transcription["model"] != "gpt-realtime-whisper":
        return f"'delay' is not supported with {transcription['model']}"
    return None


# ---- Mistral -----------------------------------------------------------------------------------------------------


def check_mistral(
    state: Service, path: str, query: Mapping[str, str], authorization: str
) -> tuple[HTTPStatus, dict[str, Any]] | None:
    if path != "/v1/audio/transcriptions/realtime":
        return HTTPStatus.NOT_FOUND, {"detail": "Not Found"}
    if authorization != f"Bearer {KEY}":
        return HTTPStatus.UNAUTHORIZED, {"detail": "Unauthorized"}
    if set(query) != {"model"} or not query["model"]:
        return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": f"query {query}"}
    state.seen.append({"model": query["model"]})
    return None


async def speak_mistral(state: Service, socket: ServerConnection, query: Mapping[str, str]) -> None:
    """Text only grows. Settings are taken until audio has begun, and nothing before the greeting."""
    session: dict[str, Any] = {
        "request_id": "r",
        "model": query["model"],
        "audio_format": {"encoding": "pcm_s16le", "sample_rate": 16_000},
        "target_streaming_delay_ms": 480,
    }

    async def send(kind: str, **fields: Any) -> None:
        await socket.send(json.dumps({"type": kind, **fields}))

    async def fault(message: Any, code: int) -> None:
        state.faults.append(str(message))
        await send("error", error={"message": message, "code": code})

    early = asyncio.create_task(socket.recv())
    done, _ = await asyncio.wait((early,), timeout=state.settings.get("greets_after_seconds", 0.02))
    if done:
        raise Refusal(1008, f"spoken to before the greeting: {early.result()!r}")
    await send("session.created", session=session)
    ear, told = None, 0

    async def frames() -> AsyncIterator[str | bytes]:
        yield await early
        async for frame in socket:
            yield frame

    async for frame in frames():
        event = json.loads(frame)
        match event.get("type"):
            case "session.update":
                wanted = event["session"]
                unknown = set(wanted) - {"audio_format", "target_streaming_delay_ms", "language", "context_bias"}
                if ear is not None:
                    await fault("Session fields cannot be changed after audio has started", 3002)
                elif unknown or not wanted:
                    await fault({"detail": f"bad session fields {sorted(unknown)}"}, 3001)
                else:
                    session.update(wanted)
                    state.seen[-1] |= wanted
                    await send("session.updated", session=session)
            case "input_audio.append":
                pcm = base64.b64decode(event["audio"], validate=True)
                if len(pcm) > 262_144 or len(pcm) % 2:
                    await fault(f"audio of {len(pcm)} bytes", 3003)
                    continue
                ear = ear or Ear(session["audio_format"]["sample_rate"])
                ear.hear(pcm)
                for word in ear.words[told:]:
                    await send("transcription.text.delta", text=f" {word.text}" if told else word.text)
                    told += 1
            case "input_audio.flush":
                pass
            case "input_audio.end":
                words = []
                if ear is not None:
                    ear.end()
                    words = [word.text for word in ear.words]
                    for text in words[told:]:
                        await send("transcription.text.delta", text=f" {text}" if told else text)
                        told += 1
                state.heard.append(tuple(words))
                usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
                text = " ".join(words)
                await send(
                    "transcription.done", model=query["model"], text=text, language=None, usage=usage, segments=[]
                )
                await socket.wait_closed()
                return
            case other:
                await fault(f"unknown message {other!r}", 3000)


SERVICES: dict[str, tuple[Handler, Check]] = {
    "deepgram": (speak_deepgram, check_deepgram),
    "openai": (speak_openai, check_openai),
    "mistral": (speak_mistral, check_mistral),
}


def local(name: str, **settings: Any) -> Any:
    """``async with local("deepgram") as server``."""
    handler, check = SERVICES[name]
    return service(handler, check, **settings)
