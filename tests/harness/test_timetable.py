from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter_ns

import pytest

from harness.replay.loop import new_event_loop
from harness.replay.timetable import Timetable

MS = 1_000_000


class Train:
    """Departs at the times given; notes each departure."""

    def __init__(self, due_ns: list[int], done: Callable[[], None]) -> None:
        self.due_ns, self.left_ns, self._done = due_ns, list[int](), done

    def depart(self, now_ns: int) -> int | None:
        self.left_ns.append(now_ns)
        if len(self.left_ns) == len(self.due_ns):
            self._done()
            return None
        return self.due_ns[len(self.left_ns)]


@pytest.mark.parametrize("make_loop", [new_event_loop, asyncio.new_event_loop])
def test_everything_leaves_in_order_and_never_early(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> list[Train]:
        timetable, left = Timetable(), asyncio.Semaphore(0)
        start_ns = perf_counter_ns() + 5 * MS
        # the later a train is added the earlier it goes, so each has to set the timer anew
        trains = [
            Train([start_ns + (20 - n) * MS + k * 7 * MS // 3 for k in range(30)], left.release) for n in range(20)
        ]
        for train in trains:
            timetable.add(train.due_ns[0], train)
        async with asyncio.timeout(10):
            for _ in trains:
                await left.acquire()
        return trains

    with asyncio.Runner(loop_factory=make_loop) as runner:
        trains = runner.run(run())
    for train in trains:
        assert len(train.left_ns) == 30
        assert all(left >= due for left, due in zip(train.left_ns, train.due_ns, strict=True))


async def test_many_that_are_due_at_once_leave_room_for_others() -> None:
    timetable, arrived = Timetable(), asyncio.Event()
    before = 0

    class Flood:
        def depart(self, now_ns: int) -> int | None:
            nonlocal before
            before += not arrived.is_set()
            return now_ns if before < 5000 and not arrived.is_set() else None

    timetable.add(perf_counter_ns(), Flood())
    asyncio.get_running_loop().call_soon(arrived.set)
    async with asyncio.timeout(10):
        await arrived.wait()
    assert before < 5000
