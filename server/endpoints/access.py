"""Who a client is: its address, seen through the proxies that are trusted to tell it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from starlette.requests import HTTPConnection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_network(text: str) -> list[Network]:
    """The networks that a CIDR, an address or a host name stands for.

    Raises:
        ValueError: it is none of these, or the name is not known.
    """
    try:
        return [ipaddress.ip_network(text.strip(), strict=False)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(text.strip(), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"{text!r:.100} is no address, no network such as 10.0.0.0/8 and no known host name") from None
    return [ipaddress.ip_network(address[0]) for *_, address in found]


def within(address: str, networks: Sequence[Network]) -> bool:
    """Whether the address lies in one of the networks; an IPv4 address written as IPv6 counts as what it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any(parsed in network or (mapped is not None and mapped in network) for network in networks)


class Clients:
    """Tells clients apart. Behind a trusted proxy the last entry of ``X-Forwarded-For`` is the client, which that proxy itself wrote."""

    def __init__(self, trusted_proxies: Sequence[Network] = ()) -> None:
        self._trusted = list(trusted_proxies)

    def address(self, connection: HTTPConnection) -> str:
        """The client's address; ``unknown`` where there is none, as on a UNIX socket."""
        peer = connection.client.host if connection.client else "unknown"
        return self.behind(peer, connection.headers.get("x-forwarded-for", ""))

    def behind(self, peer: str, forwarded_for: str) -> str:
        """The address of a client whose connection comes from ``peer`` with that header."""
        last = forwarded_for.rpartition(",")[2].strip()
        return last if last and within(peer, self._trusted) else peer
