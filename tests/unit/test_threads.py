"""Threads that die: they are named, make the server unwell, begin anew, and lose no request."""

import asyncio
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mien_server import threads as module
from mien_server.observability.metrics_endpoint import MetricsEndpoint, exposition
from mien_server.observability.thread_metrics import ThreadMetrics
from mien_server.pipeline.pool import PicturePool
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import Expired, RowFailed
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from mien_server.threads import Threads
from tests.exposition import Exposition
from tests.scheduling_rig import Echo, FakeDevice

LONG = 30.0


def once(error: BaseException, usual: Callable[..., Any]) -> Callable[..., Any]:
    """Raises the first time that it is called, and after that does what is usual."""
    first = [error]

    def raising(*args: Any, **kwargs: Any) -> Any:
        if first:
            raise first.pop()
        return usual(*args, **kwargs)

    return raising


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + LONG
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return condition()


class Held(Echo):
    """Holds every batch until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def compute(self, batch: list[Any]) -> list[Any]:
        self.entered.set()
        assert self.go.wait(LONG)
        return super().compute(batch)


class Served:
    """A scheduler of one device with one executor, its slot and its threads."""

    def __init__(self) -> None:
        self.threads = Threads()
        self.scheduler = Scheduler([FakeDevice(executors=1)], threads=self.threads)
        self.slot: Slot = self.scheduler.open_slot(
            "model", 1, BatchingPolicy(max_batch_size=4), [PlacedInstance(Echo(), "cpu")]
        )
        self.dispatcher = self.scheduler._dispatcher

    def ask(self, row: object, **more: Any) -> Future[Any]:
        return self.slot.submit(Work(rows=[row], **more))

    def hold(self) -> threading.Event:
        """Occupies the executor until the event is set."""
        model = Held()
        slot = self.scheduler.open_slot("slow", 1, BatchingPolicy(), [PlacedInstance(model, "cpu")])
        slot.submit(Work(rows=["holds the executor"]))
        assert model.entered.wait(LONG)
        return model.go

    def answers(self) -> bool:
        return bool(self.ask("more").result(LONG).results == [("answer", "more")])


@pytest.fixture
def served() -> Iterator[Served]:
    before = set(threading.enumerate())
    served = Served()
    yield served
    served.scheduler.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("error", [RuntimeError("a defect"), SystemExit("killed")])
def test_executor_that_dies_as_it_takes_a_batch_leaves_it_to_its_successor(
    served: Served,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert served.threads.unwell() == {}
    monkeypatch.setattr(served.dispatcher, "take", once(error, served.dispatcher.take))
    assert served.answers()
    assert served.threads.unwell() == {"mien-cpu-0": f"died of {error!r}"}
    assert served.threads.deaths() == {"mien-cpu-0": 1, "mien-deadlines": 0}
    (line,) = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert "mien-cpu-0" in line.getMessage()
    assert line.exc_info is not None


def test_executor_that_dies_as_it_brings_a_batch_back_fails_its_requests_and_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("a defect")
    monkeypatch.setattr(served.dispatcher, "finish", once(error, served.dispatcher.finish))
    failure = served.ask("row").exception(LONG)
    assert isinstance(failure, RowFailed)
    assert failure.incident in [vars(record).get("incident") for record in caplog.records]
    assert served.answers()
    assert served.slot.statistics().executor_deaths == 1
    assert served.slot.statistics().failed == 1
    # Nothing is counted as held or running any more.
    assert served.scheduler.close_slot(served.slot, timeout=LONG)


def test_executor_that_dies_between_two_answers_of_a_batch_fails_both(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, go = served.dispatcher, served.hold()
    futures = [served.ask(number) for number in range(2)]
    settle, calls = core._finish_part, list[Any]()

    def finish_part(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:  # one of the slow slot, two of the batch
            raise RuntimeError("a defect")
        return settle(*args)

    monkeypatch.setattr(core, "_finish_part", finish_part)
    go.set()
    assert all(isinstance(future.exception(LONG), RowFailed) for future in futures)
    assert served.answers()
    assert served.scheduler.close_slot(served.slot, timeout=LONG)


def test_executor_that_a_callback_kills_has_told_all_others(served: Served) -> None:
    go = served.hold()
    futures = [served.ask(number) for number in range(3)]

    def kill(_: Future[Any]) -> None:
        raise SystemExit("killed by a callback")

    futures[0].add_done_callback(kill)
    go.set()
    assert [f.result(LONG).results for f in futures] == [[("answer", n)] for n in range(3)]
    assert eventually(lambda: "mien-cpu-0" in served.threads.unwell())
    assert served.answers()


def test_timer_that_dies_begins_anew_and_deadlines_go_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = served.hold()
    error = OverflowError("timestamp too large")
    monkeypatch.setattr(served.dispatcher, "expire", once(error, served.dispatcher.expire))
    for _ in range(2):
        waiting = served.ask("row", deadline=time.monotonic() + 0.02)
        assert isinstance(waiting.exception(LONG), Expired)
    assert served.threads.unwell() == {"mien-deadlines": f"died of {error!r}"}
    go.set()


@pytest.mark.parametrize("kind", ["decode", "align"])
async def test_picture_thread_that_dies_fails_its_picture_alone_and_begins_anew(kind: str) -> None:
    threads = Threads()
    pool = PicturePool(threads=1, keeper=threads)

    async def run(work: Callable[[], Any]) -> Any:
        if kind == "align":
            return await pool.finish(work)
        return (await pool.decode(work, nbytes=1))[0]

    def kill() -> None:
        raise SystemExit("killed")

    pieces: list[Callable[[], Any]] = [kill, lambda: 7]
    told = await asyncio.gather(*map(run, pieces), return_exceptions=True)
    assert isinstance(told[0], RowFailed)
    assert told[1] == 7
    assert await run(lambda: 8) == 8
    assert threads.unwell() == {f"{kind}-0": "died of SystemExit('killed')"}
    assert pool.pending == 0
    pool.close()
    with pytest.raises(RuntimeError, match="told to end"):
        await run(lambda: 9)


def test_metrics_thread_that_dies_begins_anew_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, registry = Threads(), CollectorRegistry()
    registry.register(ThreadMetrics(threads))
    endpoint = MetricsEndpoint(registry, IPv4Address("127.0.0.1"), 0, threads)
    server = endpoint._server
    monkeypatch.setattr(server, "service_actions", once(ValueError("bad"), server.service_actions))
    assert eventually(lambda: threads.deaths()["mien-metrics"] == 1)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(endpoint.url, timeout=10) as response:
        told = Exposition(response.read().decode())
    assert told.one("mien_thread_deaths_total", thread="mien-metrics") == 1
    assert threads.unwell() == {"mien-metrics": "died of ValueError('bad')"}
    endpoint.close()


def test_thread_that_cannot_live_is_tried_at_growing_intervals_and_forgiven_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, begun, healed = Threads(), [], threading.Event()

    def work() -> None:
        begun.append(time.monotonic())
        if len(begun) < 6:
            raise RuntimeError("cannot live")
        healed.set()

    threads.start("sickly", work).join()
    assert healed.is_set()
    pauses = [later - before for before, later in pairwise(begun)]
    assert pauses[4] >= 0.08
    assert sum(pauses) < 5

    steady = threading.Event()
    threads.start("ailing", once(RuntimeError("once"), lambda: steady.wait(LONG) and None))
    assert eventually(lambda: "ailing" in threads.unwell())
    monkeypatch.setattr(module, "PROBATION_SECONDS", 0.0)
    assert threads.unwell() == {}
    steady.set()


def test_thread_that_the_system_has_lost_is_found_and_begins_anew() -> None:
    threads, runs, end = Threads(), [], threading.Event()

    def work() -> None:
        runs.append(threading.current_thread())
        assert end.wait(LONG)

    kept = threads.start("lost", work)
    assert eventually(lambda: len(runs) == 1)
    gone = threading.Thread(target=lambda: None)
    gone.start()
    gone.join()
    kept._thread, real = gone, kept._thread
    assert "lost" in threads.unwell()
    assert eventually(lambda: len(runs) == 2)
    end.set()
    kept.join()
    real.join()


def test_metric_names_every_thread(served: Served) -> None:
    registry = CollectorRegistry()
    registry.register(ThreadMetrics(served.threads))
    told = Exposition(exposition(registry)[0].decode())
    assert told.of("mien_thread_deaths_total") == {("mien-cpu-0",): 0, ("mien-deadlines",): 0}
