"""Remote back ends: addresses, and what several offers come to together."""

from __future__ import annotations

from typing import Any

import pytest

from server.engines.base import EngineError
from server.engines.vllm_remote.offer import Offer, terms
from server.engines.vllm_remote.settings import RemoteSettings, read_address


@pytest.mark.parametrize(
    ("text", "realtime", "root"),
    [
        ("ws://one:8000", "ws://one:8000/v1/realtime", "http://one:8000"),
        (" one:8000 ", "ws://one:8000/v1/realtime", "http://one:8000"),
        ("one", "ws://one/v1/realtime", "http://one"),
        ("https://one/speech/", "wss://one/speech/v1/realtime", "https://one/speech"),
        ("wss://one/speech/v1/realtime", "wss://one/speech/v1/realtime", "https://one/speech"),
        ("http://[::1]:80/v1/realtime/", "ws://[::1]:80/v1/realtime", "http://[::1]:80"),
    ],
)
def test_addresses_as_people_write_them(text: str, realtime: str, root: str) -> None:
    address = read_address(text)
    assert (address.realtime, address.root) == (realtime, root)


@pytest.mark.parametrize(
    "text", ["", "ftp://one", "ws://", "ws://one:port", "ws://one:99999", "ws://one?x=1", "ws://me:key@one"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="is no address of a back end"):
        read_address(text)


def test_each_back_end_is_named_once() -> None:
    with pytest.raises(EngineError, match="named twice"):
        RemoteSettings([read_address("one:8000"), read_address("ws://one:8000/v1/realtime")])
    with pytest.raises(EngineError, match="no back ends are named"):
        RemoteSettings([])


def agreed(*offers: Offer, absent: int = 0, **settings: Any) -> Any:
    addresses = [read_address(f"ws://host{number}:8000") for number in range(len(offers) + absent)]
    return terms(dict(zip(addresses, offers, strict=False)), RemoteSettings(addresses, **settings))


VLLM = Offer("voxtral", max_model_len=1024)
OWN = Offer("voxtral", (80, 480, 960), slots=10, caveat="weak")


def test_servers_of_ours_offer_what_all_of_them_can() -> None:
    both = agreed(OWN, Offer("voxtral", (480, 960, 2400), slots=5))
    assert (both.delays_ms, both.default_delay_ms, both.slots) == ((480, 960), 480, 15)
    assert (both.max_segment_seconds, both.caveat, both.model) == (None, "weak", "voxtral")


def test_a_server_of_vllm_has_the_one_delay_that_the_operator_names() -> None:
    assert agreed(VLLM).delays_ms == (480,)
    other = agreed(VLLM, fixed_delay_ms=960)
    assert (other.delays_ms, other.default_delay_ms) == ((960,), 960)
    assert agreed(VLLM, OWN, fixed_delay_ms=960).delays_ms == (960,)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(
        EngineError, match=r"no transcription delay in common .*host0:8000: 2400 ms; .*host1:8000: 80, 480, 960 ms"
    ):
        agreed(VLLM, OWN, fixed_delay_ms=2400)
    with pytest.raises(EngineError, match="--delay-ms 240 is not offered by all back ends; possible: 80, 480, 960 ms"):
        agreed(OWN, default_delay_ms=240)


def test_slots_are_what_is_said_bounded_by_what_is_set() -> None:
    assert agreed(VLLM).slots == 128
    assert agreed(VLLM, slots=32).slots == 32
    assert agreed(OWN, slots=32).slots == 10
    assert agreed(OWN, slots=4).slots == 4


def test_back_ends_that_are_not_there_yet_are_counted_like_the_others() -> None:
    assert agreed(OWN, Offer("voxtral", (480,), slots=20), absent=2).slots == 30 + 2 * 15


def test_the_length_of_vllm_bounds_a_segment() -> None:
    """1024 tokens: 39 of prompt at 480 ms, 10 steps after the end; the rest are 80 ms each."""
    assert agreed(VLLM, Offer("voxtral", max_model_len=4096)).max_segment_seconds == pytest.approx(
        (1024 - 39 - 10) * 0.08
    )
    with pytest.raises(EngineError, match=r"holds 6\.3 s of audio in a segment \(max_model_len 128\)"):
        agreed(Offer("voxtral", max_model_len=128))
