"""What a back end says about itself over HTTP: whether it is well, and what it serves."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from server.engines.base import EngineError
from server.engines.vllm_remote.settings import DEFAULT_SLOTS, Address, RemoteSettings
from sizing.capacity import segment_seconds

_LEAST_SEGMENT_SECONDS = 20.0
"""Shorter segments leave no room for the seam and the last seconds of an utterance."""

_LONGEST_ANSWER_BYTES = 2**20
_PAUSE_SECONDS = 0.25


class BackendError(Exception):
    """A back end is not to be had at present; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a back end serves. This project's servers say all of it; vLLM's say the model and, as ``max_model_len``, its length.

    ``delays_ms``: the transcription delays that a stream may ask for; empty when streams cannot ask. ``fixed_delay_ms`` is then the
    one that is in force, None where the back end does not say.
    """

    model: str
    delays_ms: Sequence[int] = ()
    fixed_delay_ms: int | None = None
    slots: int | None = None
    max_model_len: int | None = None
    caveat: str = ""


class _Model(msgspec.Struct):
    id: str
    delays_ms: list[int] = msgspec.field(default_factory=list)
    delay_ms: int | None = None
    slots: int | None = None
    max_model_len: int | None = None
    caveat: str = ""


class _Models(msgspec.Struct):
    data: list[_Model]


def ask(address: Address, api_key: str, timeout_seconds: float) -> Offer:
    """Ask a back end for its health and what it serves. Blocks; for a thread.

    Raises:
        BackendError: it does not answer, is not well, or serves nothing.
    """
    check_health(address, api_key, timeout_seconds)
    body = _get(f"{address.root}/v1/models", api_key, timeout_seconds)
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except msgspec.DecodeError as error:
        raise BackendError(f"its /v1/models makes no sense: {error}") from None
    if not models:
        raise BackendError("it serves no model")
    first = models[0]
    fixed = None if first.delays_ms else first.delay_ms
    return Offer(first.id, tuple(first.delays_ms), fixed, first.slots, first.max_model_len, first.caveat)


def check_health(address: Address, api_key: str, timeout_seconds: float) -> None:
    """Returns when the back end says that it is well. Blocks; for a thread.

    Raises:
        BackendError: it does not.
    """
    _get(f"{address.root}/health", api_key, timeout_seconds)


def _get(url: str, api_key: str, timeout_seconds: float) -> bytes:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_seconds) as answer:
            body: bytes = answer.read(_LONGEST_ANSWER_BYTES)
            return body
    except urllib.error.HTTPError as error:
        with error:
            hint = "; set --backend-api-key" if error.code in (401, 403) else ""
            raise BackendError(f"{url} answers {error.code} {error.reason}{hint}") from None
    except urllib.error.URLError as error:
        raise BackendError(f"{url}: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise BackendError(f"{url}: {error or type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Terms:
    """What all back ends together offer: what the engine can say of itself before it is started."""

    model: str
    default_delay_ms: int
    delays_ms: Sequence[int]
    slots: int
    max_segment_seconds: float | None
    caveat: str


def discover(settings: RemoteSettings) -> dict[Address, Offer | BackendError]:
    """Ask all back ends until at least one answers. Blocks, up to ``start_seconds``.

    Raises:
        EngineError: none does.
    """
    give_up_at = time.monotonic() + settings.start_seconds
    with ThreadPoolExecutor(len(settings.addresses)) as threads:
        while True:
            answers = list(threads.map(lambda address: _answer(address, settings), settings.addresses))
            if any(isinstance(answer, Offer) for answer in answers):
                return dict(zip(settings.addresses, answers, strict=True))
            if time.monotonic() >= give_up_at:
                reasons = "; ".join(
                    f"{address}: {why}" for address, why in zip(settings.addresses, answers, strict=True)
                )
                raise EngineError(f"no back end answered within {settings.start_seconds:g} s ({reasons})")
            time.sleep(_PAUSE_SECONDS)


def _answer(address: Address, settings: RemoteSettings) -> Offer | BackendError:
    try:
        return ask(address, settings.api_key, settings.connect_seconds)
    except BackendError as error:
        return error


def slots_of(offer: Offer, settings: RemoteSettings) -> int:
    """How many streams the back end is given at once: what the operator says, but never more than what it says itself."""
    if offer.slots is None:
        return settings.slots or DEFAULT_SLOTS
    return min(settings.slots or offer.slots, offer.slots)


def delays_of(offer: Offer, settings: RemoteSettings) -> set[int]:
    """The delays that streams of this back end can have, in milliseconds."""
    if offer.delays_ms:
        return set(offer.delays_ms)
    return {offer.fixed_delay_ms or settings.fixed_delay_ms or settings.default_delay_ms}


def terms(offers: Mapping[Address, Offer], settings: RemoteSettings) -> Terms:
    """What they have in common. Back ends that were not there are counted with the slots of an average one.

    Raises:
        EngineError: they have no delay in common, or not the default one, or too short a length.
    """
    delays = set.intersection(*(delays_of(offer, settings) for offer in offers.values()))
    if not delays:
        listed = "; ".join(f"{address}: {_listed(delays_of(offer, settings))}" for address, offer in offers.items())
        raise EngineError(f"the back ends have no transcription delay in common ({listed}); run them with one")
    default = settings.default_delay_ms
    if default not in delays:
        if len(delays) > 1:
            raise EngineError(f"--delay-ms {default} is not offered by all back ends; possible: {_listed(delays)}")
        (default,) = delays
    slots = [slots_of(offer, settings) for offer in offers.values()]
    absent = len(settings.addresses) - len(offers)
    first = next(iter(offers.values()))
    return Terms(
        first.model,
        default,
        tuple(sorted(delays)),
        sum(slots) + absent * (sum(slots) // len(slots)),
        _longest_segment(offers, max(delays)),
        next((offer.caveat for offer in offers.values() if offer.caveat), ""),
    )


def _longest_segment(offers: Mapping[Address, Offer], delay_ms: int) -> float | None:
    bounds = {
        address: segment_seconds(offer.max_model_len, delay_ms)
        for address, offer in offers.items()
        if offer.max_model_len is not None
    }
    for address, bound in bounds.items():
        if bound < _LEAST_SEGMENT_SECONDS:
            raise EngineError(
                f"{address} holds {bound:.1f} s of audio in a segment (max_model_len {offers[address].max_model_len}); "
                f"at least {_LEAST_SEGMENT_SECONDS:g} s are needed"
            )
    return min(bounds.values(), default=None)


def _listed(delays: set[int]) -> str:
    return ", ".join(str(delay) for delay in sorted(delays)) + " ms"
