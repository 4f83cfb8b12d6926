"""One stream of the gRPC service without a socket, over a session core and an engine that says word for word what it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.events import (
    Audio,
    Final,
    Finish,
    Heard,
    OpenSegment,
    SegmentDone,
    Speech,
    Start,
    Started,
    Token,
    Usage,
)
from server.core.events import CloseSegment as Close
from server.core.events import Feed as Fed
from server.core.rpc_figures import DecodeTiming, RpcFigures
from server.core.session import Session, SessionSettings
from server.protocols.rpc import DecodeQueue, End, Outbox, Result, RpcStream, StreamPolicy
from server.protocols.rpc_sessions import RpcSessions, SessionPolicy
from wire.pcm import bytes_of, seconds_of
from wire.stt.errors import SttRefusedError
from wire.stt.stt_pb2 import AudioChunk, SessionRequest, VADMode


@dataclass
class Driven:
    """A stream, the session under it and an engine that says ``w1 w2 ...``, a word for each 0.5 s, when it is told to."""

    policy: StreamPolicy = StreamPolicy()
    figures: RpcFigures = field(default_factory=RpcFigures)
    pending_limit: int | None = None

    def __post_init__(self) -> None:
        self.now = 0.0
        self.sessions = RpcSessions(SessionPolicy(bytes_rate=0.0, create_rate=0.0), self.figures, lambda: "f" * 32)
        self.sessions.create(SessionRequest(session_id="s", vad_threshold_override=0.0), "ip", 0.0, {}, 0.0)
        self.queue = DecodeQueue(self.pending_limit, self.figures)
        self.woken = 0
        self.stream = RpcStream(self.sessions, self.policy, self.figures, self.queue, 0.0, self.wake)
        self.core = Session(SessionSettings(0.08, timed_words=False, segment_seconds=None))
        self.results: list[Result] = []
        self.end: End | None = None
        self.fed = self.heard = self.words = 0
        self.segment: int | None = None
        self.closed = False

    def wake(self) -> None:
        self.woken += 1

    def take(self, steps: Sequence[object]) -> None:
        for step in steps:
            match step:
                case Result():
                    assert self.end is None, "nothing comes behind the end"
                    self.results.append(step)
                    self.stream.written(step, 0.0, self.now)
                case End():
                    assert self.end is None, "there is one end"
                    self.end = step
                case Start() | Audio() | Finish():
                    self.outputs(self.core.handle(step, self.now))

    def outputs(self, outputs: Sequence[object]) -> None:
        for output in outputs:
            match output:
                case OpenSegment(number):
                    self.segment, self.heard, self.fed = number, 0, 0
                case Fed(_, pcm):
                    self.fed += len(pcm)
                case Close():
                    self.closed = True
                case _:
                    self.take(self.stream.tell(output, self.core.heard_seconds, self.now))  # type: ignore[arg-type]

    def chunk(self, seconds: float, *, final: bool = False) -> None:
        pcm = bytes(bytes_of(seconds))
        try:
            self.take(self.stream.receive(AudioChunk(pcm16=pcm, session_id="s", is_final=final), self.now))
        except SttRefusedError as refusal:
            self.take(self.stream.fail(refusal.error, refusal.message))

    def hear(self) -> None:
        """The engine hears what it was fed."""
        if self.segment is None or self.end is not None:
            return
        while self.heard < self.fed:
            step = min(bytes_of(0.5), self.fed - self.heard)
            self.heard += step
            self.words += 1
            heard = Heard(self.segment, seconds_of(self.heard), f" w{self.words}")
            self.outputs(self.core.handle(heard, self.now))
            self.take(self.stream.progressed(self.core.heard_seconds, self.now))
        if self.closed and not self.core.queued_seconds:
            segment, self.segment, self.closed = self.segment, None, False
            self.outputs(self.core.handle(SegmentDone(segment), self.now))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.stream.due(self.now))


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("chunk"), st.floats(0, 1.9)),
        st.tuples(st.just("hear"), st.just(0.0)),
        st.tuples(st.just("later"), st.floats(0, 3)),
        st.tuples(st.just("final"), st.floats(0, 1.9)),
        st.tuples(st.just("close"), st.just(0.0)),
    ),
    max_size=40,
)


@given(happenings, st.sampled_from([None, 0.2, 1.5]), st.booleans())
def test_results_grow_there_is_one_final_and_everything_is_given_back(
    happened: list[tuple[str, float]], interval: float | None, abandoned: bool
) -> None:
    driven = Driven(StreamPolicy(partial_interval_seconds=interval, session_timeout_seconds=20.0))
    for what, amount in happened:
        match what:
            case "chunk":
                driven.chunk(amount)
            case "final":
                driven.chunk(amount, final=True)
            case "close":
                if driven.stream.session is not None:
                    driven.take(driven.stream.half_close(driven.now))
            case "hear":
                driven.hear()
            case "later":
                driven.later(amount)
    if not abandoned:
        if driven.stream.session is not None:
            driven.take(driven.stream.half_close(driven.now))
        for _ in range(3):
            driven.hear()
    driven.stream.close()
    finals = [result for result in driven.results if result.is_final]
    partials = [result for result in driven.results if result.partial]
    assert len(finals) <= 1
    if driven.end is not None and driven.end.error is None and driven.words:
        assert driven.results[-1].is_final
        assert finals[0].text.split() == [f"w{n + 1}" for n in range(driven.words)]
    for earlier, later in pairwise(driven.results):
        assert later.text.startswith(earlier.text), "an engine that commits only adds"
        assert later.end_seconds >= earlier.end_seconds
    for earlier, later in pairwise(partials):
        assert interval is not None
        assert later.end_seconds - earlier.end_seconds >= interval - 1e-6 or later is partials[-1]
    trailing = dict(driven.stream.trailing())
    if trailing:
        parts = ("buffer-wait", "queue-wait", "inference", "response-emit")
        total = sum(float(trailing[f"stt-decode-{part}-sec"]) for part in parts)
        assert float(trailing["stt-decode-total-sec"]) == pytest.approx(total, abs=1e-6)
        assert trailing["stt-decode-count"] == str(len(driven.results))
    assert driven.figures.decodes_pending == driven.figures.decodes_waiting == driven.figures.vad_utterances == 0
    assert len(driven.sessions) == (0 if driven.stream.session is not None else 1)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.one_of(st.none(), st.integers(1, 5)))
def test_an_outbox_drops_partials_alone_and_counts_them(kinds: list[bool], limit: int | None) -> None:
    figures = RpcFigures()
    outbox = Outbox(limit, figures)
    put = [Result(str(n), not partial, partial, 0.0, 0.0, 0, DecodeTiming()) for n, partial in enumerate(kinds)]
    for result in put:
        assert outbox.put(result)
        partials = sum(waiting.partial for waiting in outbox._results)
        assert limit is None or not result.partial or partials <= limit
    left = []
    while (result := outbox.take()) is not None:  # type: ignore[assignment]
        left.append(result)
    assert [result for result in left if not result.partial] == [result for result in put if not result.partial]
    assert figures.partials_dropped == len(put) - len(left)
    assert [int(result.text) for result in left] == sorted(int(result.text) for result in left)


@pytest.mark.spec("grpc-52")
def test_a_client_that_leaves_too_much_unread_is_given_up() -> None:
    outbox = Outbox(8, RpcFigures())
    results = 0
    while outbox.put(Result("x", True, False, 0.0, 0.0, 0)):
        results += 1
    assert results == 10_000
    large = Outbox(8, RpcFigures())
    assert large.put(Result("x" * 2**22, True, False, 0.0, 0.0, 0))
    assert not large.put(Result("x" * 2**23, True, False, 0.0, 0.0, 0))


@pytest.mark.spec("grpc-55")
def test_places_go_to_those_who_wait_longest_and_come_back_from_those_who_give_up() -> None:
    figures = RpcFigures()
    queue = DecodeQueue(1, figures)
    streams = []
    for _ in range(3):
        driven = Driven(figures=figures)
        driven.queue = queue
        driven.stream = RpcStream(driven.sessions, driven.policy, figures, queue, 0.0, driven.wake)
        driven.chunk(1.0, final=True)
        streams.append(driven)
    first, second, third = streams
    assert (figures.decodes_pending, figures.decodes_waiting) == (1, 2)
    second.later(1.0)  # the queue's own timeout
    assert second.end is not None
    assert second.end.error is not None
    assert second.end.error.code == "ERR2001"
    first.hear()
    assert third.woken == 1
    third.take(third.stream.poll(third.now))
    third.hear()
    assert [result.text for result in third.results if result.is_final] == ["w1 w2"]
    assert (figures.decodes_pending, figures.decodes_waiting) == (0, 0)


spoken_utterances = st.lists(st.tuples(st.booleans(), st.floats(0.5, 5.0)), min_size=0, max_size=8)


@pytest.mark.spec("grpc-39", "grpc-43", "grpc-44", "grpc-48")
@given(spoken_utterances, st.booleans(), st.booleans(), st.booleans())
def test_utterances_that_silence_ends(
    utterances: list[tuple[bool, float]], last_has_text: bool, auto_end: bool, final_on_vad: bool
) -> None:
    """Utterances with and without text, each ended by silence, then the end of the audio; told to the stream event by event."""
    figures = RpcFigures()
    sessions = RpcSessions(SessionPolicy(bytes_rate=0.0, final_on_vad=final_on_vad), figures, lambda: "f" * 32)
    request = SessionRequest(
        session_id="s", vad_threshold=0.5, vad_mode=VADMode.VAD_AUTO_END if auto_end else VADMode.VAD_CONTINUE
    )
    sessions.create(request, "ip", 0.0, {}, 0.0)
    queue = DecodeQueue(None, figures)
    stream = RpcStream(sessions, StreamPolicy(partial_interval_seconds=None), figures, queue, 0.0)
    steps: list[object] = list(stream.receive(AudioChunk(pcm16=bytes(3200), session_id="s"), 0.0))
    expected: list[tuple[str, float]] = []
    offset, now = 0.0, 1.0

    def tell(*events: Started | Token | Speech | Final) -> None:
        for event in events:
            steps.extend(stream.tell(event, 0.0, now))

    def final(text: str, seconds: float, ended_by: str) -> Final:
        return Final("stream", text, (), Usage(), 0.08, seconds, ended_by)

    tell(Started("stream", 0.08))
    for number, (has_text, seconds) in enumerate(utterances):
        if stream.over:
            break
        text = f" said {number}" if has_text else ""
        tell(Speech("stream", True, 0.2))
        assert figures.vad_utterances == 1
        if text:
            tell(Token("stream", text))
            expected.append((text.strip(), offset + 0.2))
        tell(Speech("stream", False, seconds - 0.1))
        assert figures.decodes_pending == 1
        tell(final(text, seconds, "silence"), Started("stream", 0.08))
        assert (figures.decodes_pending, figures.vad_utterances) == (0, 0)
        offset += seconds
    results = [step for step in steps if isinstance(step, Result)]
    assert [result.text for result in results] == [text for text, _ in expected]
    assert [result.start_seconds for result in results] == pytest.approx([start for _, start in expected])
    assert all(result.is_final is (auto_end or final_on_vad) for result in results)
    if auto_end and utterances:
        assert isinstance(steps[-1], End), "the first one ends the stream, with text or without"
        assert len(expected) <= 1
    else:
        steps.clear()
        steps.extend(stream.half_close(now))
        rest = " the rest" if last_has_text else ""
        tell(final(rest, 1.0, "client"))
        finals = [step for step in steps if isinstance(step, Result)]
        owed = expected and not final_on_vad and not auto_end
        told = "the rest" if last_has_text else expected[-1][0] if owed else None
        assert [result.text for result in finals] == ([] if told is None else [told])
        assert all(result.is_final for result in finals)
        assert steps[-1] == End()
    stream.close()
    assert len(sessions) == figures.decodes_pending == figures.vad_utterances == 0
