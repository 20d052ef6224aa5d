"""The real scheduler under any sequence of calls that hypothesis comes up with, threads and all."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mien_server import threads
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import Draining, Expired, QueueFull, RowFailed, Unavailable
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from tests.scheduling_rig import FakeDevice

LONG = 30.0
GOOD, FAILS, KILLS = "good", "fails", "kills"


@pytest.fixture(autouse=True)
def executors_begin_anew_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example may have sixty rows that kill, and with pauses of a second it would take half a minute."""
    monkeypatch.setattr(threads, "_LONGEST_PAUSE", 0.001)
    monkeypatch.setattr(threads, "_FIRST_PAUSE", 0.001)


class Row(NamedTuple):
    """One row and what it does to the model."""

    request: int
    number: int
    kind: str


class Call(NamedTuple):
    """An accepted request."""

    slot: Slot
    rows: list[Row]
    future: Future[Any]
    deadline: float | None


class Model:
    """Does what its rows say, while its gate is open; notes what never may happen."""

    def __init__(self, policy: BatchingPolicy, gate: threading.Event) -> None:
        self.wrong: list[list[Row]] = []
        self._policy = policy
        self._gate = gate

    def collate(self, rows: Sequence[Row]) -> list[Row]:
        if len(rows) > self._policy.max_batch_size:
            self.wrong.append(list(rows))
        return list(rows)

    def compute(self, batch: list[Row]) -> list[Row]:
        assert self._gate.wait(LONG)
        kinds = {row.kind for row in batch}
        if KILLS in kinds:
            raise SystemExit("killed")
        if FAILS in kinds:
            raise ArithmeticError("cannot compute")
        return batch

    def split(self, outputs: list[Row], rows: Sequence[Row]) -> list[Row]:
        return outputs


@st.composite
def policies(draw: st.DrawFn) -> BatchingPolicy:
    largest = draw(st.integers(2, 5))
    ordered = draw(st.booleans())
    levels = 0 if ordered else draw(st.sampled_from([0, 2]))
    return BatchingPolicy(
        max_batch_size=largest,
        combine=draw(st.booleans()),
        preferred_batch_sizes=draw(st.sampled_from([(), (largest,), (1,)])),
        max_queue_delay=draw(st.sampled_from([0.0, 0.0, 0.002])),
        preserve_ordering=ordered,
        priority_levels=levels,
        default_priority_level=min(levels, 1),
        max_queue_size=draw(st.sampled_from([5, 100, 100])),
        split_rows=draw(st.booleans()),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Opens, closes and loads slots, with the executors held or free."""

    slots = Bundle("slots")

    @initialize(cores=st.sampled_from([0, 2]))
    def start(self, cores: int) -> None:
        self.threads_before = set(threading.enumerate())
        self.gate = threading.Event()
        self.gate.set()
        self.device = FakeDevice(executors=2, cores=cores)
        self.scheduler = Scheduler([self.device], max_requests=60, max_bytes=1000)
        self.models: dict[Slot, Model] = {}
        self.closed: set[Slot] = set()
        self.refused: Counter[Slot] = Counter()
        self.accepted: list[Call] = []
        self.left: dict[Slot, list[Future[Any]]] = {}

    @rule(target=slots, policy=policies(), count=st.integers(1, 3))
    def open_slot(self, policy: BatchingPolicy, count: int) -> Slot:
        model = Model(policy, self.gate)
        placed = PlacedInstance(model, "cpu", count)
        slot = self.scheduler.open_slot("model", len(self.models) + 1, policy, [placed])
        self.models[slot] = model
        self.left[slot] = []
        return slot

    @rule(
        slot=slots,
        requests=st.lists(
            st.lists(st.sampled_from([GOOD] * 15 + [FAILS, KILLS]), min_size=1, max_size=3),
            min_size=3,
            max_size=12,
        ),
        shape=st.sampled_from("ab"),
        patience=st.none() | st.sampled_from([0.001, 0.005, LONG]),
        priority=st.integers(0, 2),
        passed=st.sampled_from([0, 0, 1]),
    )
    def submit(
        self,
        slot: Slot,
        requests: list[list[str]],
        shape: str,
        patience: float | None,
        priority: int,
        passed: int,
    ) -> None:
        for kinds in requests:
            rows = [Row(len(self.accepted), number, kind) for number, kind in enumerate(kinds)]
            deadline = None if patience is None else time.monotonic() + patience
            try:
                future = slot.submit(
                    Work(
                        rows=rows,
                        shape=shape,
                        nbytes=len(rows),
                        deadline=deadline,
                        priority=priority,
                        passed=passed,
                    )
                )
            except Draining:
                assert slot in self.closed
                self.refused[slot] += 1
            except (QueueFull, Expired, Unavailable, ValueError):
                self.refused[slot] += 1
            else:
                future.add_done_callback(self.left[slot].append)
                self.accepted.append(Call(slot, rows, future, deadline))

    # Not from a bundle: what is accepted depends on the threads, and hypothesis must not.
    @rule(ago=st.integers(0, 30), count=st.integers(1, 5))
    def cancel(self, ago: int, count: int) -> None:
        for call in self.accepted[::-1][ago : ago + count]:
            if call.future.cancel():
                assert call.future.done()

    @rule()
    def hold_the_executors(self) -> None:
        self.gate.clear()

    @rule()
    def let_the_executors_go(self) -> None:
        self.gate.set()

    @rule(slot=slots, kinds=st.sampled_from([(GOOD, FAILS, KILLS, GOOD), (KILLS,) * 5]))
    def do_harm(self, slot: Slot, kinds: tuple[str, ...]) -> None:
        self.submit(slot, [[kind] for kind in kinds], "a", None, 0, 1)

    @precondition(lambda self: not self.gate.is_set())
    @rule()
    def short_deadlines_pass_while_the_executors_are_held(self) -> None:
        until = time.monotonic() + 1
        waiting = [
            call.future
            for call in self.accepted
            if call.deadline is not None and call.deadline < until and not call.future.running()
        ]
        # A future that starts to run only now is held, and so may be left.
        end = time.monotonic() + 2
        while not all(future.done() or future.running() for future in waiting):
            assert time.monotonic() < end
            time.sleep(0.001)

    @precondition(lambda self: self.gate.is_set())
    @rule(slot=slots)
    def close_slot(self, slot: Slot) -> None:
        self.closed.add(slot)
        assert self.scheduler.close_slot(slot, timeout=LONG)

    @precondition(lambda self: not self.gate.is_set())
    @rule(slot=slots)
    def close_slot_in_vain(self, slot: Slot) -> None:
        self.closed.add(slot)
        self.scheduler.close_slot(slot, timeout=0)

    @invariant()
    def batches_are_never_too_large(self) -> None:
        assert not any(model.wrong for model in getattr(self, "models", {}).values())

    def teardown(self) -> None:
        self.gate.set()
        assert self.scheduler.drain(timeout=LONG)
        self.scheduler.close()
        assert set(threading.enumerate()) <= self.threads_before
        assert all(granted <= self.device.cores for _, granted in self.device.grants)
        for slot in self.models:
            calls = [call for call in self.accepted if call.slot is slot]
            self.check(slot, calls)

    def check(self, slot: Slot, calls: list[Call]) -> None:
        outcomes = Counter(outcome(call) for call in calls)
        statistics = slot.statistics()
        assert slot.pending == 0
        assert (
            statistics.succeeded,
            statistics.failed,
            statistics.expired,
            statistics.cancelled,
            statistics.rejected,
        ) == (
            outcomes["succeeded"],
            outcomes["failed"],
            outcomes["expired"],
            outcomes["cancelled"],
            self.refused[slot],
        )
        assert statistics.batch_sizes.total() == statistics.close_reasons.total()
        told = self.left[slot]
        assert Counter(told) == Counter(call.future for call in calls)
        if slot.policy.preserve_ordering:
            answered = [f for f in told if not f.cancelled() and f.exception() is None]
            assert answered == [call.future for call in calls if call.future in set(answered)]


def outcome(call: Call) -> str:
    """The statistic that a call's outcome counts for; fails if the outcome is wrong."""
    guilty = any(row.kind != GOOD for row in call.rows)
    assert call.future.done()
    if call.future.cancelled():
        return "cancelled"
    error = call.future.exception()
    if error is None:
        assert call.future.result().results == call.rows
        assert not guilty
        return "succeeded"
    if isinstance(error, Expired):
        assert call.deadline is not None
        return "expired"
    if isinstance(error, RowFailed):
        assert guilty
        return "failed"
    if isinstance(error, Unavailable):
        assert call.slot.broken
        return "failed"
    return "cancelled"  # while some of its rows ran


_USUAL = settings(
    max_examples=20,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = _USUAL

# Other examples, and more of them.
_LONGER = settings(_USUAL, max_examples=20, derandomize=False)
TestSchedulerForLonger = pytest.mark.long(
    type("TestSchedulerForLonger", (SchedulerMachine.TestCase,), {"settings": _LONGER})
)
