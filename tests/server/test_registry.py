"""Models by name: who is found, who may go, and what loading does when things go wrong."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.engines.base import EngineError
from server.engines.loading import MOST_WAITING, Loader, TooManyJobsError
from server.engines.registry import InUseError, Model, Models, UnknownModelError
from server.engines.scripted import ScriptedEngine, read_script


class Counted(ScriptedEngine):
    """Knows how often it was started and stopped, and can fail to start."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(read_script(""), 0.48)
        self.started = self.stopped = 0
        self._fails = fails

    async def start(self) -> None:
        if self._fails:
            raise EngineError("no weights")
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1


class Client:
    """Holds a model until it is done or loses it."""

    def __init__(self, model: Model) -> None:
        self.lost: list[str] = []
        self._model = model
        model.hold(self)

    def lose(self, model: str) -> None:
        self.lost.append(model)

    def done(self) -> None:
        self._model.let_go(self)


def models(*names: str) -> Models:
    return Models(Counted(), names)


async def test_a_model_is_found_by_its_id_its_names_and_its_engines_name() -> None:
    registry = models("served")
    other = await registry.load("other", Counted(), ["alias"])
    assert registry.find(None) is registry.find("") is registry.find("served") is registry.default
    assert registry.find("other") is registry.find("alias") is other
    assert registry.find("scripted") is registry.default, "both have that name: the default one is meant"
    assert registry.names == ["served", "scripted", "other", "alias"]
    with pytest.raises(UnknownModelError, match="model 'nobody' is not loaded; loaded: served, scripted, other, alias"):
        registry.find("nobody")


async def test_an_id_wins_over_a_name() -> None:
    registry = models("taken")
    other = await registry.load("taken", Counted())
    assert registry.find("taken") is other
    assert registry.owners["taken"] is other


async def test_an_id_is_there_once_and_what_cannot_start_is_not_there() -> None:
    registry = models()
    await registry.load("a", Counted())
    again = Counted()
    with pytest.raises(EngineError, match="'a' is loaded already"):
        await registry.load("a", again)
    assert again.started == 0
    with pytest.raises(EngineError, match="no weights"):
        await registry.load("b", Counted(fails=True))
    assert [model.id for model in registry] == ["default", "a"]


async def test_of_two_that_load_the_same_id_at_once_the_slower_one_is_stopped_again() -> None:
    class Slow(Counted):
        ready = asyncio.Event()

        async def start(self) -> None:
            await self.ready.wait()
            await super().start()

    registry, slow, quick = models(), Slow(), Counted()
    late = asyncio.create_task(registry.load("a", slow))
    await asyncio.sleep(0)
    loaded = await registry.load("a", quick)
    slow.ready.set()
    with pytest.raises(EngineError, match="was loaded in the meantime"):
        await late
    assert registry.find("a") is loaded
    assert (slow.started, slow.stopped, quick.stopped) == (1, 1, 0)


async def test_unloading_waits_for_the_last_holder() -> None:
    registry, engine = models(), Counted()
    model = await registry.load("a", engine)
    one, two = Client(model), Client(model)
    unloading = asyncio.create_task(registry.unload("a"))
    await asyncio.sleep(0)
    with pytest.raises(UnknownModelError):
        registry.find("a")
    assert "a" not in registry.names
    one.done()
    await asyncio.sleep(0)
    assert not unloading.done()
    assert engine.stopped == 0
    two.done()
    await unloading
    assert engine.stopped == 1
    assert "a" not in registry
    assert one.lost == two.lost == []


async def test_after_the_time_to_drain_those_who_still_hold_it_lose_it() -> None:
    registry, engine = models(), Counted()
    model = await registry.load("a", engine)
    done, late, elsewhere = Client(model), Client(model), Client(registry.default)
    done.done()
    await registry.unload("a", 0.01)
    assert (done.lost, late.lost, elsewhere.lost) == ([], ["a"], [])
    assert engine.stopped == 1


async def test_the_last_one_stays_also_while_another_is_leaving() -> None:
    registry = models()
    with pytest.raises(InUseError, match="'default' is the last model"):
        await registry.unload("default")
    model = await registry.load("a", Counted())
    client = Client(model)
    leaving = asyncio.create_task(registry.unload("a"))
    await asyncio.sleep(0)
    with pytest.raises(InUseError):
        await registry.unload("default")
    with pytest.raises(UnknownModelError):
        await registry.unload("a")  # it is on its way already
    client.done()
    await leaving
    assert registry.default.id == "default"


async def test_the_engine_of_the_start_is_stopped_by_who_started_it_and_the_others_here() -> None:
    first, second, third = Counted(), Counted(), Counted()
    registry = Models(first)
    await registry.load("a", second)
    await registry.unload("default")
    assert registry.default.id == "a"
    await registry.load("default", third)  # the id is free again
    await registry.stop()
    assert (first.stopped, second.stopped, third.stopped) == (1, 1, 1)


# ---- jobs


async def until_over(loader: Loader, model_id: str) -> str:
    async with asyncio.timeout(20):
        while not (job := loader.job(model_id)) or not job.over:  # noqa: ASYNC110 - as an operator asks
            await asyncio.sleep(0.001)
    return job.status


async def test_a_job_tells_how_long_it_took() -> None:
    times = iter([100.0, 107.5])
    loader = Loader(models(), lambda: next(times))
    assert loader.load("a", Counted).told() == {
        "status": "queued",
        "model_id": "a",
        "started_at": None,
        "finished_at": None,
    }
    assert await until_over(loader, "a") == "success"
    job = loader.job("a")
    assert job is not None
    assert job.told() == {
        "status": "success",
        "model_id": "a",
        "started_at": 100.0,
        "finished_at": 107.5,
        "duration_sec": 7.5,
    }


async def test_whatever_goes_wrong_is_the_jobs_error() -> None:
    loader = Loader(models())

    def broken() -> Counted:
        raise MemoryError

    loader.load("a", lambda: Counted(fails=True))
    loader.load("b", broken)
    assert await until_over(loader, "a") == await until_over(loader, "b") == "failed"
    jobs = loader.job("a"), loader.job("b")
    assert [job.error for job in jobs if job] == ["no weights", "MemoryError"]


async def test_at_most_sixteen_wait_and_the_newest_outcomes_are_remembered() -> None:
    loader = Loader(models())
    gate = threading.Event()

    def held() -> Counted:
        gate.wait(20)
        return Counted()

    loader.load("first", held)
    async with asyncio.timeout(20):
        while (job := loader.job("first")) is None or job.status != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for number in range(MOST_WAITING):
        loader.load(f"m{number}", Counted)
    with pytest.raises(TooManyJobsError, match="16 models wait"):
        loader.load("one too many", Counted)
    gate.set()
    for number in range(MOST_WAITING):
        assert await until_over(loader, f"m{number}") == "success"
    for number in range(300):
        loader.load(f"n{number}", lambda: Counted(fails=True))
        await until_over(loader, f"n{number}")
    assert loader.job("first") is None
    assert loader.job("n299") is not None


async def test_stopping_gives_up_on_what_is_being_loaded() -> None:
    loader = Loader(models())
    gate = threading.Event()

    def held() -> Counted:
        gate.wait(20)
        return Counted()

    loader.load("a", held)
    loader.load("b", Counted)
    await asyncio.sleep(0)
    await loader.stop()
    gate.set()
    assert [job.status for job in (loader.job("a"), loader.job("b")) if job] == ["failed", "failed"]
    assert [model.id for model in loader.models] == ["default"]
