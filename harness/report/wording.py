"""Numbers as text: the same rounding, units and brackets on every page and in every terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.statistics import Difference, Estimate

LONGEST_VALUE = 28


def percent(value: float | None) -> str:
    """A fraction in per cent."""
    return "unknown" if value is None else f"{value * 100:.1f} %"


def percent_with_interval(estimate: Estimate) -> str:
    """A fraction in per cent, its interval behind it."""
    return f"{percent(estimate.value)} {bracketed(estimate, 100, 1)}".rstrip()


def seconds(value: float) -> str:
    """Seconds, or milliseconds below a tenth."""
    return f"{value * 1000:.0f} ms" if _small(value) else f"{value:.2f} s"


def _small(value: float) -> bool:
    return abs(value) < 0.0995


def milliseconds(value: float) -> str:
    """Seconds in milliseconds."""
    return f"{value * 1000:.1f} ms"


def plain(value: float) -> str:
    """A count, or a figure without a unit."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def signed_points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "?" if value is None else f"{value * 100:+.1f}"


def bracketed(estimate: Estimate | Difference, scale: float, digits: int) -> str:
    """The interval, scaled; the reason where there is none."""
    if estimate.low is None or estimate.high is None:
        return f"(no interval: {estimate.note})" if estimate.note else ""
    return f"[{estimate.low * scale:.{digits}f}, {estimate.high * scale:.{digits}f}]"


def ratio(value: float) -> str:
    """A factor without a unit."""
    return f"{value:.2f}"


def interval_ratio(estimate: Estimate) -> str:
    """For `ratio`."""
    return bracketed(estimate, 1, 2)


def interval_percent(estimate: Estimate) -> str:
    """For `percent`."""
    return bracketed(estimate, 100, 1)


def interval_seconds(estimate: Estimate) -> str:
    """For `seconds`."""
    return bracketed(estimate, 1000, 0) if _small(estimate.value or 0.0) else bracketed(estimate, 1, 2)


def interval_milliseconds(estimate: Estimate) -> str:
    """For `milliseconds`."""
    return bracketed(estimate, 1000, 1)


def interval_plain(estimate: Estimate) -> str:
    """For `plain`."""
    return bracketed(estimate, 1, 1)


def interval_points(estimate: Estimate | Difference) -> str:
    """For `signed_points`."""
    return bracketed(estimate, 100, 1)


def streams_said(concurrency: int) -> str:
    """The concurrency in words."""
    return "one stream at a time" if concurrency == 1 else f"{concurrency} streams at once"


def counted(count: int, singular: str, plural: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def shortened(texts: Sequence[str]) -> dict[str, str]:
    """Each text, or where it is long what lies between the common start and the common end of all, whole words of it."""
    longest = max(map(len, texts), default=0)
    if longest <= LONGEST_VALUE or len(texts) < 2:
        return {text: text for text in texts}
    start = len(re.sub(r"[^\s,;/{}]*$", "", _common_start(texts)))
    rests = [text[start:] for text in texts]
    end = len(re.sub(r"[^\s,;/{}]*$", "", _common_start([rest[::-1] for rest in rests])))
    middles = [f"{'…' if start else ''}{rest[: len(rest) - end]}{'…' if end else ''}" for rest in rests]
    if max(map(len, middles)) > LONGEST_VALUE:
        middles = [f"{number}: {middle[:LONGEST_VALUE]}…" for number, middle in enumerate(middles, 1)]
    return dict(zip(texts, middles, strict=True))


def _common_start(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    differs = (at for at, letter in enumerate(shortest) if any(text[at] != letter for text in texts))
    return shortest[: next(differs, len(shortest))]
