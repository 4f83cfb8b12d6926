"""What a protocol costs: the same load over each surface, compared pair by pair, and the bytes that it sends for the same audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from harness import drivers
from harness.drivers.base import Ask, Frame, Request, Transport
from harness.gate import METRICS, GateResult, compare_runs, read
from harness.gate.verdicts import SIGNIFICANCE, Judged
from harness.replay import http
from harness.report.charts import Bar
from harness.report.studies import Table
from wire.pcm import BYTES_PER_SAMPLE

PROTOCOL = "harness.protocol"
LATENCIES = ("first_token", "word_p50", "word_p95", "time_to_final")
MASK_BYTES = 4  # of every frame that a client sends (RFC 6455, 5.2)
GRPC_PREFIX_BYTES = 5  # of every message: a flag and its length
HTTP2_HEADER_BYTES, LARGEST_DATA_FRAME_BYTES = 9, 16_384  # RFC 9113, 4.1 and 4.2
RECORDING_MS = 10_000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two protocols under the same load, the second held against the first."""

    first: str
    second: str
    result: GateResult

    @property
    def name(self) -> str:
        return f"{self.second} less {self.first}"


def pairs(table: Table) -> list[Pair]:
    """Every two protocols of a study, compared over the cells in which they agree in all else. None where there are not two.

    Metrics are those of the gate: paired over utterances, corrected together for each pair of protocols.
    """
    runs: dict[str, list[Path]] = {}
    for _, row in table.sound.iterrows():
        runs.setdefault(str(row[PROTOCOL]), []).append(table.path.parent / "runs" / str(row["run"]))
    sides = {name: read(folders, "run") for name, folders in runs.items()}
    found = []
    for one, other in combinations(sides, 2):
        refused = [*sides[one][1], *sides[other][1]]
        result = GateResult(refused=refused) if refused else compare_runs(sides[one][0], sides[other][0])
        found.append(Pair(one, other, result))
    return found


def _latencies(pair: Pair) -> list[Judged]:
    return [one for one in pair.result.judged if one.test.metric in LATENCIES]


def bars(found: Sequence[Pair]) -> list[Bar]:
    """The differences of latencies, for `charts.differences`."""
    several = len(found) > 1
    made = []
    for pair in found:
        judged = _latencies(pair)
        cells = len({one.test.cell for one in judged})
        for one in judged:
            words = [METRICS[one.test.metric].label]
            words += [pair.name] if several else []
            words += [one.test.cell.partition(" ")[2]] if cells > 1 else []
            made.append(Bar(", ".join(words), one.test.change, one.adjusted_p <= SIGNIFICANCE))
    return made


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a client sends for a second of audio: counted from the frames themselves, the headers of what carries them among them.

    Of a protocol that sends whole recordings it is one of ten seconds.
    """

    protocol: str
    frames_per_second: float
    bytes_per_second: float
    times_pcm: float


def upstream(protocol: str, packet_ms: int, utterance: str = "spoken-en-001") -> Upstream:
    """For one protocol and length of packet. Names and keys of a session count once and are left out."""
    driver, request = drivers.find(protocol), Request(model="model")
    driver.check(request)
    piece_ms = RECORDING_MS if driver.whole else packet_ms
    samples = piece_ms * driver.sample_rate // 1000
    packet = driver.packet(utterance, request, 0, bytes(samples * BYTES_PER_SAMPLE), last=driver.whole)
    per_second = 1000 / piece_ms
    sent = _carried_bytes(packet, driver.transport) * per_second
    return Upstream(protocol, per_second, sent, sent / (driver.sample_rate * BYTES_PER_SAMPLE))


def _carried_bytes(packet: Frame | Ask, transport: Transport) -> int:
    """A packet with what the transport puts before it."""
    match packet:
        case Ask():
            return len(http.prepared(packet, "http://localhost/", {}))
        case str():
            payload = len(packet.encode())
        case _:
            payload = len(packet)
    if transport is Transport.GRPC:
        frames = -(-(payload + GRPC_PREFIX_BYTES) // LARGEST_DATA_FRAME_BYTES)
        return payload + GRPC_PREFIX_BYTES + frames * HTTP2_HEADER_BYTES
    return payload + 2 + MASK_BYTES + (0 if payload < 126 else 2 if payload < 65_536 else 8)


def upstream_table(protocols: Sequence[str], packets_ms: Sequence[int]) -> pd.DataFrame:
    """Protocols by lengths of packet."""
    rows = [upstream(name, packet_ms) for name in protocols for packet_ms in packets_ms]
    lengths = [packet_ms for _ in protocols for packet_ms in packets_ms]
    return pd.DataFrame(
        {
            "protocol": [one.protocol for one in rows],
            "packet (ms)": lengths,
            "frames per s": [f"{one.frames_per_second:g}" for one in rows],
            "kB per s of audio": [f"{one.bytes_per_second / 1000:.1f}" for one in rows],
            "times the PCM": [f"{one.times_pcm:.3f}" for one in rows],
        }
    )


def conclude(found: Sequence[Pair]) -> list[str]:
    """Whether the protocols differ, by how much at most, and whether the text is the same."""
    if not found:
        return ["Cannot tell: there are not two protocols whose runs may be quoted."]
    said = []
    for pair in found:
        if pair.result.refused:
            said.append(f"{pair.name}: cannot compare: {'; '.join(pair.result.refused)}")
            continue
        said += [
            f"{pair.name}, {one.test.cell.partition(' ')[2]}: {_sentence(one)}"
            for one in pair.result.judged
            if one.test.metric in (*LATENCIES, "wer", "cer", "errors")
        ]
    return said


def _sentence(one: Judged) -> str:
    metric, change = METRICS[one.test.metric], one.test.change
    if one.test.metric == "errors":
        return f"failed streams {metric.figure(one.test.baseline)} and {metric.figure(one.test.candidate)} of {one.test.n}, counted."
    if change.value is None or change.low is None or change.high is None:
        return f"{metric.label}: cannot tell ({change.note or 'too few utterances'})."
    figure = f"{metric.label} {_figure(one, change.value)} [{_figure(one, change.low)}, {_figure(one, change.high)}] {_unit(one)}"
    if change.low == change.high == 0:
        return f"{figure}: the same in each of {one.test.n} utterances."
    if one.adjusted_p <= SIGNIFICANCE:
        return f"{figure}: a difference{'' if abs(change.value) > one.test.tolerance else ', too small to matter'}."
    if not change.low <= 0 <= change.high:
        return f"{figure}: cannot tell them apart once all metrics are tested together."
    return f"{figure}: cannot tell them apart; if there is a difference, it is within the interval."


def _figure(one: Judged, value: float) -> str:
    return f"{1000 * value:+.1f}" if one.test.metric in LATENCIES else METRICS[one.test.metric].signed(value)


def _unit(one: Judged) -> str:
    return "ms" if one.test.metric in LATENCIES else METRICS[one.test.metric].unit
