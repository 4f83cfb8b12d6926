"""A chat engine behind an OpenAI-compatible server, such as ``vllm serve`` with Voxtral Mini 3B."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pybase64

from server.core.events import Usage
from server.engines.base import (
    Answer,
    ChatInfo,
    EngineError,
    OverloadedError,
    Sampling,
    TooLongError,
    Transcription,
    UnsupportedError,
)
from server.engines.calls import STOPPED, Calls
from server.engines.recordings import check_question, check_samples, most_text_tokens, wav_of

if TYPE_CHECKING:
    import httpx

__all__ = ["OpenAiChatEngine", "OpenAiChatSettings"]

log = logging.getLogger(__name__)

_MOST_ANSWER_BYTES = 8 << 20
_TOO_LONG = re.compile(r"context length|too long|longer than|max_model_len|maximum \w* ?length", re.IGNORECASE)
"""How servers say that a prompt does not fit; they have no code of their own for it."""


@dataclass(frozen=True, slots=True)
class OpenAiChatSettings:
    """``url`` is the server's, with or without ``/v1``. ``model`` empty: the first that it lists.

    ``slots`` requests are on their way at once, ``waiting`` more may wait. ``answer_seconds`` is how long one may take.
    """

    url: str
    model: str = ""
    api_key: str = ""
    slots: int = 16
    waiting: int = 64
    most_audios: int = 5
    connect_seconds: float = 10.0
    answer_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting.

        Raises:
            EngineError: with the setting's name, its value and what it may be.
        """
        if not re.match(r"https?://[^/\s]+", self.url):
            raise EngineError(f"chat-url must be like http://host:8000, got {self.url!r}")
        if self.slots < 1:
            raise EngineError(f"chat-max-num-seqs must be at least 1, got {self.slots!r}")


class OpenAiChatEngine:
    """See the module. Every call is one request: a cancelled one is closed, by which the server knows to give it up."""

    def __init__(self, settings: OpenAiChatSettings) -> None:
        self._settings = settings
        self._model = settings.model
        self._base = settings.url.rstrip("/").removesuffix("/v1")
        self._calls = Calls(settings.slots + settings.waiting)
        self._client: httpx.AsyncClient | None = None
        self._failed = False

    @property
    def info(self) -> ChatInfo:
        return ChatInfo("remote", self._model, (), self._settings.slots, self._settings.most_audios)

    def metrics(self) -> dict[str, float]:
        return {"requests": len(self._calls), "refused": self._calls.refused, "failed": float(self._failed)}

    # ---- start and stop

    async def start(self) -> None:
        """Find the server and its model.

        Raises:
            EngineError: with a sentence that tells the operator what to do.
        """
        try:
            import httpx
        except ImportError as error:
            raise EngineError("a remote chat engine needs httpx; pip install httpx") from error
        settings = self._settings
        self._client = httpx.AsyncClient(
            base_url=self._base,
            headers={"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {},
            timeout=httpx.Timeout(settings.answer_seconds, connect=settings.connect_seconds, pool=None),
            limits=httpx.Limits(max_connections=settings.slots),
            trust_env=False,
        )
        self._calls.open()
        try:
            listed = _field(await self._request("GET", "/v1/models"), "data", list)
            names = [str(entry["id"]) for entry in listed if isinstance(entry, dict) and "id" in entry]
            if not names:
                raise EngineError(f"{self._base} serves no model")
            if settings.model and settings.model not in names:
                raise EngineError(f"{self._base} serves {', '.join(names)}, not {settings.model} (chat-model-id)")
        except BaseException:
            await self.stop()
            raise
        self._model = settings.model or names[0]
        log.info("%s at %s is there to answer", self._model, self._base)

    async def stop(self) -> None:
        """Close all connections; calls under way fail."""
        client, self._client = self._client, None
        if client is not None:
            await self._calls.close()
            await client.aclose()

    # ---- what it is asked

    async def transcribe(self, pcm: bytes, language: str | None = None, temperature: float = 0.0) -> Transcription:
        """See ``ChatEngine``. Servers of this kind say how long the audio was, not how many tokens it took: usage is zero then."""
        Sampling(temperature)
        check_samples(pcm)
        if not pcm:
            return Transcription("", Usage(), language)
        form = {
            "model": self._model,
            "temperature": str(temperature),
            "response_format": "json",
            "max_completion_tokens": str(most_text_tokens(pcm)),  # an extension of vLLM's
        }
        if language:
            form["language"] = language

        def body() -> dict[str, Any]:
            return {"data": form, "files": {"file": ("recording.wav", wav_of(pcm), "audio/wav")}}

        said = await self._request("POST", "/v1/audio/transcriptions", body)
        return Transcription(_field(said, "text", str).strip(), _usage(said), language)

    async def answer(self, question: str, audios: Sequence[bytes], sampling: Sampling) -> Answer:
        """See ``ChatEngine``."""
        check_question(question, audios, self._settings.most_audios)

        def body() -> dict[str, Any]:
            files = [pybase64.b64encode_as_string(wav_of(pcm)) for pcm in audios]
            parts: list[dict[str, Any]] = [
                {"type": "input_audio", "input_audio": {"data": file, "format": "wav"}} for file in files
            ]
            content = {
                "model": self._model,
                "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
                "temperature": sampling.temperature,
                "top_p": max(sampling.top_p, 1e-6),  # vLLM knows no 0
                "max_tokens": sampling.max_tokens,
            }
            return {"content": json.dumps(content).encode(), "headers": {"Content-Type": "application/json"}}

        said = await self._request("POST", "/v1/chat/completions", body)
        choices = _field(said, "choices", list)
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        text = _field(_field(choice, "message", dict), "content", str)
        return Answer(text.strip(), _usage(said), choice.get("finish_reason") == "length")

    # ---- inside

    async def _request(self, method: str, path: str, body: Callable[[], dict[str, Any]] = dict) -> dict[str, Any]:
        """The object that the server answers with.

        Raises:
            EngineError: and its kinds, for every other outcome.
        """
        import httpx

        client = self._client
        if client is None:
            raise EngineError(STOPPED)

        async def exchange() -> tuple[int, bytes]:
            parts = await asyncio.to_thread(body)  # of large files
            async with client.stream(method, path, **parts) as response:
                received = bytearray()
                async for piece in response.aiter_bytes():
                    received += piece
                    if len(received) > _MOST_ANSWER_BYTES:
                        raise EngineError(f"{self._base} answers with more than {_MOST_ANSWER_BYTES} bytes")
                return response.status_code, bytes(received)

        try:
            status, received = await self._calls.run(exchange)
        except httpx.TimeoutException as error:
            self._failed = isinstance(error, httpx.ConnectTimeout)
            raise EngineError(f"{self._base} has not answered in time ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._failed = True
            raise EngineError(
                f"{self._base} does not answer ({type(error).__name__}: {error}); is it running there? (chat-url)"
            ) from error
        self._failed = False
        if status != 200:
            raise _refusal(self._base, path, status, received)
        try:
            said = json.loads(received)
        except ValueError as error:
            raise EngineError(f"{self._base}{path} answers with something else than JSON") from error
        if not isinstance(said, dict):
            raise EngineError(f"{self._base}{path} answers with something else than a JSON object")
        return said


def _refusal(base: str, path: str, status: int, received: bytes) -> EngineError:
    message = _message(received)
    match status:
        case 401 | 403:
            return EngineError(f"{base} refuses the key (EARMARK_CHAT_API_KEY): {message}")
        case 413:
            return TooLongError(message)
        case 400 | 422:
            return TooLongError(message) if _TOO_LONG.search(message) else UnsupportedError(message)
        case 429 | 503:
            return OverloadedError(f"{base} is busy: {message}")
        case _:
            return EngineError(f"{base}{path} answers with status {status}: {message}")


def _message(received: bytes) -> str:
    """What a server says about its error: ``{"error": {"message"}}``, the older ``{"message"}``, or its bare text."""
    text = received[:2000].decode("utf-8", "replace")
    try:
        said = json.loads(received)
        inner = said.get("error", said)
        text = str(inner["message"] if isinstance(inner, dict) else inner)
    except (ValueError, KeyError, AttributeError):
        pass
    return text[:500]


def _field(said: Mapping[str, Any], name: str, kind: type) -> Any:
    value = said.get(name)
    if not isinstance(value, kind):
        raise EngineError(f"the server's answer has no {name}")
    return value


def _usage(said: Mapping[str, Any]) -> Usage:
    usage = said.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))
