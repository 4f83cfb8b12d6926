"""Figures of several parts of a server as those of one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from server.core.rpc_figures import RpcFigures, Spread


def together(parts: Iterable[RpcFigures]) -> RpcFigures:
    """The sum: numbers and counts are added, of the largest values the largest is kept."""
    whole = RpcFigures()
    for part in parts:
        for name, value in vars(part).items():
            so_far = getattr(whole, name)
            match value:
                case int():
                    setattr(whole, name, so_far + value)
                case Counter():
                    so_far.update(value)
                case deque():
                    so_far.extend(value)
                case Spread():
                    so_far.total += value.total
                    so_far.count += value.count
                    so_far.largest = max(so_far.largest, value.largest)
    return whole
