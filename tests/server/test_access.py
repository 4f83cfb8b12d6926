"""Who a client is behind proxies, and which networks a setting names."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.endpoints.access import Clients, read_network, within

ADDRESSES = st.ip_addresses().map(str)


@given(ADDRESSES, st.lists(ADDRESSES, max_size=4))
def test_nobody_is_believed_who_is_not_trusted(peer: str, forwarded: list[str]) -> None:
    assert Clients().behind(peer, ", ".join(forwarded)) == peer


@given(ADDRESSES, st.lists(ADDRESSES, min_size=1, max_size=4))
def test_a_trusted_proxy_tells_of_its_own_client_alone(peer: str, forwarded: list[str]) -> None:
    clients = Clients([ipaddress.ip_network(peer)])
    assert clients.behind(peer, " , ".join(forwarded)) == forwarded[-1]
    assert clients.behind(peer, "") == clients.behind(peer, f"{forwarded[0]}, ") == peer


def test_a_network_of_mapped_addresses_has_them() -> None:
    assert within("::ffff:10.0.0.1", read_network("::ffff:10.0.0.1"))


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_address_lies_in_its_network_however_it_is_written(address: ipaddress.IPv4Address, prefix: int) -> None:
    networks = read_network(f"{address}/{prefix}")
    assert within(str(address), networks)
    assert within(f"::ffff:{address}", networks), "as a socket for both families tells it"


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 32))
def test_two_addresses_share_a_network_when_they_share_its_bits(
    one: ipaddress.IPv4Address, other: ipaddress.IPv4Address, prefix: int
) -> None:
    same = int(one) >> (32 - prefix) == int(other) >> (32 - prefix)
    assert within(str(one), read_network(f"{other}/{prefix}")) is same


def test_a_host_name_stands_for_its_addresses() -> None:
    assert within("127.0.0.1", read_network("localhost")) or within("::1", read_network("localhost"))


@pytest.mark.parametrize("text", ["", " ", "10.0.0.0/33", "no such host", "300.1.2.3.4", "a" * 300])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address, no network"):
        read_network(text)


@pytest.mark.parametrize("peer", ["unknown", "", "/run/socket", "fe80::1%eth0"])
def test_what_has_no_address_lies_nowhere(peer: str) -> None:
    assert not within(peer, read_network("10.0.0.0/8"))
    assert Clients(read_network("10.0.0.0/8")).behind(peer, "10.0.0.1") == peer


def test_a_zone_does_not_matter() -> None:
    assert within("fe80::1%eth0", read_network("fe80::/10"))
