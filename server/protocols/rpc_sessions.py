"""The sessions of the gRPC service: who may have one, under which settings, and until when."""

from __future__ import annotations

import hmac
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

from server.core.events import StreamOptions
from server.core.limits import TokenBuckets
from server.core.rpc_figures import RpcFigures
from server.core.voice import EndpointerSettings
from server.protocols.rpc_profiles import BY_NUMBER, Profiles
from wire.stt import errors
from wire.stt.errors import SttRefusedError
from wire.stt.languages import LANGUAGES
from wire.stt.stt_pb2 import DecodeProfile, SessionRequest, SessionResponse, Task, VADMode

_YES = {"1", "true", "yes", "on"}
_RELEASE = 0.7
"""Of the threshold: a voiced frame stays voiced down to so much, as with the endpointer's own defaults."""

_TASKS = {Task.TASK_TRANSCRIBE: "transcribe", Task.TASK_TRANSLATE: "translate"}


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """What the operator allows and what clients get who say nothing. ``None`` switches a limit off, a rate of 0 too.

    ``accepts`` tells whether a key is one of the server's; with ``None`` its value does not matter.

    ``signing_secret`` non-empty: sessions need metadata signed with it (see ``check_signature``), no older than ``signature_seconds``.
    """

    max_sessions: int | None = 4
    max_sessions_per_ip: int | None = 4
    max_sessions_per_api_key: int | None = 8
    create_rate: float = 5.0
    create_burst: float = 10.0
    bytes_rate: float = 32_000.0
    bytes_burst: float = 64_000.0
    require_api_key: bool = False
    accepts: Callable[[str], bool] | None = None
    vad_silence_seconds: float = 0.5
    vad_threshold: float = 0.5
    vad_slots: int | None = 4
    vad_growth: float = 1.5
    vad_available: bool = True
    language: str = "ko"
    language_fix: bool = False
    task: str = "transcribe"
    profiles: Profiles = field(default_factory=Profiles)
    unstreamed_seconds: float | None = 60.0
    final_on_vad: bool = False
    signing_secret: str = ""
    signature_seconds: float = 300.0


@dataclass(slots=True, eq=False)
class RpcSession:
    """One registered session. ``identity`` is whose bytes are counted together. ``endpointer`` None: everything is speech."""

    id: str
    ip: str
    api_key: str
    token: str
    auto_end: bool
    endpointer: EndpointerSettings | None
    language: str
    final_on_vad: bool
    options: StreamOptions
    created_at: float
    streaming: bool = False

    @property
    def identity(self) -> str:
        """The key, else the address, else the session itself."""
        return f"api:{self.api_key}" if self.api_key else f"ip:{self.ip}" if self.ip else f"session:{self.id}"


class VadSlots:
    """How many sessions may listen for speech: a capacity that grows by a factor when it is used up, as far as ``most``."""

    def __init__(self, start: int | None, growth: float, most: int | None) -> None:
        self._most = most
        self._growth = growth
        self.capacity = most if start is None else start if most is None else min(start, most)
        self.used = 0

    def enter(self) -> bool:
        """Take a slot; False when there is none and can be none."""
        if self.capacity is not None and self.used >= self.capacity:
            grown = max(self.capacity + 1, math.ceil(self.capacity * self._growth))
            self.capacity = grown if self._most is None else min(grown, self._most)
            if self.used >= self.capacity:
                return False
        self.used += 1
        return True

    def leave(self) -> None:
        """Give it back."""
        self.used -= 1


class RpcSessions:
    """See the module. ``choose_model`` turns the name a client gave (None: none) into that of a loaded model, None for the default one;
    ``languages`` tells which languages the engine of that model can be told; ``new_token`` makes 32 hexadecimal digits.
    """

    def __init__(
        self,
        policy: SessionPolicy,
        figures: RpcFigures,
        new_token: Callable[[], str],
        choose_model: Callable[[str | None], str | None] = lambda name: None,  # noqa: ARG005
        languages: Callable[[str | None], frozenset[str]] = lambda model: frozenset(LANGUAGES),  # noqa: ARG005
    ) -> None:
        self.policy = policy
        self._figures = figures
        self._new_token = new_token
        self._choose_model = choose_model
        self._languages = languages
        self._sessions: dict[str, RpcSession] = {}
        self._unstreamed: OrderedDict[str, RpcSession] = OrderedDict()  # oldest first
        self._by_ip: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._creations = TokenBuckets(policy.create_rate, policy.create_burst)
        self._bytes = TokenBuckets(policy.bytes_rate, policy.bytes_burst)
        self._vad = VadSlots(policy.vad_slots, policy.vad_growth, policy.max_sessions)
        figures.vad_slots = self._vad.capacity or 0

    def __len__(self) -> int:
        return len(self._sessions)

    # ---- registering

    def create(
        self, request: SessionRequest, ip: str, now: float, metadata: Mapping[str, str], wall_time: float
    ) -> SessionResponse:
        """Register a session. The order of the checks is part of the contract. ``wall_time`` is seconds since 1970, for signatures.

        Raises:
            SttRefusedError: nothing has changed, but that the creation may have been counted by the rate limit.
        """
        self.expire(now)
        policy, attributes = self.policy, dict(request.attributes)
        if not request.session_id:
            raise SttRefusedError(errors.SESSION_ID_REQUIRED, "session_id must not be empty")
        if policy.signing_secret:
            check_signature(policy, request.session_id, metadata, wall_time)
        api_key = _first(attributes, "api_key", "api-key")
        wanted = _first(attributes, "api_key_required", "api-key-required").lower() in _YES
        if not api_key and (policy.require_api_key or wanted):
            raise SttRefusedError(errors.API_KEY_MISSING, "attribute api_key is required")
        if policy.accepts is not None and not policy.accepts(api_key or _bearer(metadata)):
            raise SttRefusedError(errors.API_KEY_MISSING, "attribute api_key is not one of this server's keys")
        if not self._creations.take(api_key or ip or "anonymous", now):
            raise SttRefusedError(
                errors.CREATE_SESSION_RATE_LIMITED,
                f"more than {policy.create_rate:g} sessions per second; try again later",
            )
        self._check_places(ip, api_key)
        profile = policy.profiles.choose(request.decode_profile, attributes)
        unknown = policy.profiles.unknown(profile)
        if unknown:
            raise SttRefusedError(
                errors.DECODE_OPTION_INVALID, f"decode profile {profile} has unknown options: {', '.join(unknown)}"
            )
        threshold = _threshold(request, policy)
        endpointer = self._endpointer(request, threshold)
        self._take_slot(threshold)
        if request.session_id in self._sessions:
            if endpointer is not None:
                self._vad.leave()
            raise SttRefusedError(errors.SESSION_ID_ALREADY_ACTIVE, "session_id is registered already")
        own = policy.profiles.of(profile)
        task = _TASKS.get(request.task) or (str(own["task"]) if own.get("task") in _TASKS.values() else policy.task)
        language = self._language(request.language_code, str(own.get("language") or ""))
        session = self._session(request, ip, api_key, endpointer, now, profile, task, language)
        self._register(session)
        return _response(request, session, attributes, profile, threshold, _silence(request, policy))

    def _check_places(self, ip: str, api_key: str) -> None:
        policy = self.policy
        if ip and policy.max_sessions_per_ip is not None and self._by_ip[ip] >= policy.max_sessions_per_ip:
            message = f"this address has {policy.max_sessions_per_ip} sessions already"
            raise SttRefusedError(errors.SESSION_LIMIT_EXCEEDED, message)
        limit = policy.max_sessions_per_api_key
        if api_key and limit is not None and self._by_key[api_key] >= limit:
            raise SttRefusedError(errors.SESSION_LIMIT_EXCEEDED, f"this API key has {limit} sessions already")

    def _take_slot(self, threshold: float) -> None:
        policy, full = self.policy, False
        if policy.max_sessions is not None:
            full = len(self._sessions) >= policy.max_sessions
        if threshold <= 0:
            if full:
                message = f"the server has {policy.max_sessions} sessions already"
                raise SttRefusedError(errors.SESSION_LIMIT_EXCEEDED, message)
            return
        if not policy.vad_available:
            message = "this server has no voice activity detection; send vad_threshold_override 0"
            raise SttRefusedError(errors.VAD_POOL_EXHAUSTED, message)
        if full or not self._vad.enter():
            raise SttRefusedError(errors.VAD_POOL_EXHAUSTED, "no more sessions with voice activity detection now")
        self._figures.vad_slots = self._vad.capacity or 0

    def _endpointer(self, request: SessionRequest, threshold: float) -> EndpointerSettings | None:
        if threshold <= 0:
            return None
        return EndpointerSettings(
            threshold=threshold,
            release=threshold * _RELEASE,
            min_speech_seconds=EndpointerSettings().min_speech_seconds,
            silence_seconds=_silence(request, self.policy),
        )

    def _language(self, *codes: str) -> str:
        for code in codes:
            wanted = code.strip().lower()
            if wanted in LANGUAGES:
                return wanted
        return self.policy.language if self.policy.language_fix else ""

    def _session(
        self,
        request: SessionRequest,
        ip: str,
        api_key: str,
        endpointer: EndpointerSettings | None,
        now: float,
        profile: str,
        task: str,
        language: str,
    ) -> RpcSession:
        attributes = request.attributes
        model = self._choose_model(_first(attributes, "model_id", "model") or None)
        options = StreamOptions(
            endpointing=endpointer is not None,
            language=language if language in self._languages(model) else None,
            model=model,
            endpointer=endpointer,
            task=task,
            profile=self.policy.profiles.for_engine(profile),
            temperature=self.policy.profiles.temperature(profile),
        )
        asked = _first(attributes, "emit_final_on_vad", "final_on_vad", "vad_final").lower()
        return RpcSession(
            id=request.session_id,
            ip=ip,
            api_key=api_key,
            token=self._new_token() if request.require_token else "",
            auto_end=request.vad_mode == VADMode.VAD_AUTO_END,
            endpointer=endpointer,
            language=language,
            final_on_vad=asked in _YES if asked else self.policy.final_on_vad,
            options=options,
            created_at=now,
        )

    def _register(self, session: RpcSession) -> None:
        self._sessions[session.id] = session
        self._unstreamed[session.id] = session
        self._by_ip[session.ip] += 1
        self._by_key[session.api_key] += 1
        self._figures.session_opened(session.api_key)

    # ---- streaming

    def bind(self, session_id: str, now: float) -> RpcSession:
        """The session is streamed from now on, until ``remove``.

        Raises:
            SttRefusedError: there is none of that id, or it is being streamed already.
        """
        self.expire(now)
        session = self._sessions.get(session_id)
        if session is None:
            text = f"no session {session_id!r:.100}; create it first" if session_id else "no session_id was sent"
            raise SttRefusedError(errors.SESSION_ID_MISSING, text)
        if session.streaming:
            raise SttRefusedError(errors.SESSION_ID_MISSING, "the session is being streamed already")
        session.streaming = True
        del self._unstreamed[session_id]
        return session

    def plain(self, options: StreamOptions) -> StreamOptions:
        """The options for the default model, for when the session's own model is not loaded any more."""
        language = options.language if options.language in self._languages(None) else None
        return replace(options, model=None, language=language)

    def take_bytes(self, session: RpcSession, count: int, now: float) -> bool:
        """Count bytes of audio against the session's identity; False when it sends them too fast."""
        return self._bytes.take(session.identity, now, count)

    def remove(self, session: RpcSession) -> None:
        """The session's stream is over; its id may be registered again."""
        if self._sessions.get(session.id) is not session:
            return
        del self._sessions[session.id]
        self._unstreamed.pop(session.id, None)
        for counter, key in ((self._by_ip, session.ip), (self._by_key, session.api_key)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        if session.endpointer is not None:
            self._vad.leave()
        self._figures.session_closed(session.api_key)

    # ---- time

    def deadline(self) -> float | None:
        """When ``expire`` has something to do."""
        if self.policy.unstreamed_seconds is None or not self._unstreamed:
            return None
        return next(iter(self._unstreamed.values())).created_at + self.policy.unstreamed_seconds

    def expire(self, now: float) -> None:
        """Forget sessions that were created and never streamed."""
        while (due := self.deadline()) is not None and now >= due:
            self._figures.sessions_expired += 1
            self.remove(next(iter(self._unstreamed.values())))


def check_signature(policy: SessionPolicy, session_id: str, metadata: Mapping[str, str], wall_time: float) -> None:
    """``authorization: Bearer HEX`` and ``x-stt-auth-ts: TS`` with HEX the HMAC-SHA256 of ``session_id:TS`` under the secret.

    Raises:
        SttRefusedError: one of them is missing, wrong or too old (TS is in seconds since 1970).
    """
    scheme, _, signature = metadata.get("authorization", "").partition(" ")
    stamp = metadata.get("x-stt-auth-ts", "").strip()
    try:
        age = abs(wall_time - float(stamp))
    except ValueError:
        age = math.inf
    right = hmac.new(policy.signing_secret.encode(), f"{session_id}:{stamp}".encode(), sha256).hexdigest()
    given = signature.strip().lower().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given, right.encode()):
        raise SttRefusedError(errors.CREATE_SESSION_UNAUTHENTICATED, "authorization is missing or wrong")
    if not age <= policy.signature_seconds:
        raise SttRefusedError(
            errors.CREATE_SESSION_UNAUTHENTICATED,
            f"x-stt-auth-ts is more than {policy.signature_seconds:g} s from the server's clock",
        )


def _bearer(metadata: Mapping[str, str]) -> str:
    scheme, _, token = metadata.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _first(attributes: Mapping[str, str], *names: str) -> str:
    return next((found for name in names if (found := attributes.get(name, "").strip())), "")


def _threshold(request: SessionRequest, policy: SessionPolicy) -> float:
    """The threshold in force; more than a probability can be is the highest one.

    Raises:
        SttRefusedError: it is negative, or not a number.
    """
    asked = request.vad_threshold or policy.vad_threshold
    if request.HasField("vad_threshold_override"):
        asked = request.vad_threshold_override
    if not asked >= 0:
        raise SttRefusedError(errors.VAD_THRESHOLD_NEGATIVE, f"the VAD threshold must not be negative, got {asked:g}")
    return min(asked, 1.0)


def _silence(request: SessionRequest, policy: SessionPolicy) -> float:
    return request.vad_silence if request.vad_silence > 0 else policy.vad_silence_seconds


def _number(profile: str) -> DecodeProfile.ValueType:
    """The enum's value of a profile; names of the operator's own have none."""
    for number in DecodeProfile.values():
        if BY_NUMBER.get(number) == profile:
            return number
    return DecodeProfile.DECODE_PROFILE_UNSPECIFIED


def _response(
    request: SessionRequest,
    session: RpcSession,
    attributes: dict[str, str],
    profile: str,
    threshold: float,
    silence_seconds: float,
) -> SessionResponse:
    attributes["decode_profile"] = profile
    if session.language:
        attributes["language_code"] = session.language
    return SessionResponse(
        attributes=attributes,
        vad_mode=VADMode.VAD_AUTO_END if session.auto_end else VADMode.VAD_CONTINUE,
        vad_silence=silence_seconds,
        vad_threshold=threshold,
        token=session.token,
        token_required=request.require_token,
        language_code=session.language,
        task=Task.TASK_TRANSLATE if session.options.task == "translate" else Task.TASK_TRANSCRIBE,
        decode_profile=_number(profile),
    )
