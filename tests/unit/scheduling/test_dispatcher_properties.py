"""Whatever comes in whatever order: nothing is lost, answered twice, mixed up or started too late.

Hypothesis makes up devices, policies and a history of arrivals, cancellations, batches and passing time;
a virtual clock runs it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mien_server.scheduling.batching import QueuePolicy, TimeoutAction
from mien_server.scheduling.errors import (
    Expired,
    QueueFull,
    RowFailed,
    SchedulingError,
    Unavailable,
)
from mien_server.scheduling.queue import Request
from mien_server.scheduling.scheduler import Slot
from mien_server.scheduling.state import Assignment, SlotState
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import Lab, Model, answers

GOOD, FAILS, KILLS = "good", "fails", "kills"


class Row(NamedTuple):
    """One row: whose it is and what it does to the model."""

    request: int
    number: int
    kind: str


class Fickle(Model):
    """Does what its rows say."""

    def compute(self, batch: list[Row]) -> list[Any]:
        kinds = {row.kind for row in batch}
        if KILLS in kinds:
            raise SystemExit("killed")
        if FAILS in kinds:
            raise ArithmeticError("cannot compute")
        return [("answer", row) for row in batch]


class Submit(NamedTuple):
    slot: int
    kinds: tuple[str, ...]
    shape: str
    nbytes: int
    deadline: float | None
    timeout: float | None
    priority: int
    passed: int


class Take(NamedTuple):
    device: int


class Finish(NamedTuple):
    running: int
    after: float


class Cancel(NamedTuple):
    request: int


class Wait(NamedTuple):
    seconds: float


seconds = st.sampled_from([0.001, 0.01, 0.05, 0.2, 1.0])
small = st.integers(0, 7)
kinds = st.sampled_from([GOOD] * 12 + [FAILS, KILLS])
submits = st.builds(
    Submit,
    slot=small,
    kinds=st.lists(kinds, min_size=1, max_size=5).map(tuple),
    shape=st.sampled_from("aaab"),
    nbytes=st.integers(0, 20),
    deadline=st.none() | seconds,
    timeout=st.none() | seconds,
    priority=st.integers(0, 3),
    passed=st.sampled_from([0, 0, 0, 1]),
)
actions = st.one_of(
    submits,
    submits,
    submits,
    st.builds(Take, small),
    st.builds(Take, small),
    st.builds(Finish, small, seconds),
    st.builds(Cancel, st.integers(0, 60)),
    st.builds(Wait, seconds),
)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    largest = draw(st.integers(1, 6))
    ordered = draw(st.booleans())
    levels = draw(st.integers(0, 1 if ordered else 3))
    actions_allowed = [TimeoutAction.REJECT] if ordered else list(TimeoutAction)
    queue_policies = st.builds(
        QueuePolicy,
        timeout_action=st.sampled_from(actions_allowed),
        default_timeout=st.just(0.0) | seconds,
        allow_timeout_override=st.booleans(),
        max_queue_size=st.sampled_from([0, 0, 3]),
    )
    return {
        "max_batch_size": largest,
        "combine": draw(st.booleans()),
        "preferred_batch_sizes": tuple(sorted(draw(st.sets(st.integers(1, largest), max_size=2)))),
        "max_queue_delay": draw(st.just(0.0) | seconds),
        "preserve_ordering": ordered,
        "priority_levels": levels,
        "default_priority_level": min(levels, draw(st.integers(1, 3))),
        "default_queue_policy": draw(queue_policies),
        "priority_queue_policy": {
            level: draw(queue_policies) for level in range(1, levels + 1) if draw(st.booleans())
        },
        "max_queue_size": draw(st.integers(1, 20)),
        "look_ahead": draw(st.sampled_from([0, 1, 64])),
        "split_rows": draw(st.booleans()),
    }


devices = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=2).map(
    lambda sizes: [
        FakeDevice(f"device:{number}", executors, cores)
        for number, (executors, cores) in enumerate(sizes)
    ]
)


class History:
    """Plays actions and checks each batch as it starts."""

    def __init__(self, lab: Lab, slots: Sequence[Slot]) -> None:
        self.lab = lab
        self.slots = slots
        self.accepted: list[tuple[Future[Any], list[Row]]] = []
        self.of_slot: dict[SlotState, list[Future[Any]]] = defaultdict(list)
        self.refused: Counter[Slot] = Counter()
        self.running: list[Assignment] = []
        self.started: dict[SlotState, set[Request]] = defaultdict(set)

    def submit(self, action: Submit) -> None:
        slot = self.slots[action.slot % len(self.slots)]
        rows = [Row(len(self.accepted), n, kind) for n, kind in enumerate(action.kinds)]
        try:
            future = self.lab.submit(
                slot,
                rows,
                shape=action.shape,
                nbytes=action.nbytes,
                deadline=None if action.deadline is None else self.lab.now + action.deadline,
                timeout=action.timeout,
                priority=action.priority,
                passed=action.passed,
            )
        except (QueueFull, Unavailable, ValueError):
            self.refused[slot] += 1
        else:
            self.accepted.append((future, rows))
            self.of_slot[slot.state].append(future)

    def take(self, action: Take) -> bool:
        names = list(self.lab.core.devices)
        name = names[action.device % len(names)]
        queued = {
            slot.state: list(slot.state.queue) for slot in self.slots if name in slot.state.share
        }
        assignment = self.lab.take(name)
        if assignment is None:
            return False
        self.check_start(assignment, name, queued[assignment.slot])
        self.running.append(assignment)
        return True

    def check_start(self, assignment: Assignment, name: str, queued: list[Request]) -> None:
        slot, batch = assignment.slot, assignment.batch
        assert 0 < batch.rows <= slot.policy.max_batch_size
        assert len(assignment.run.outcomes) == batch.rows
        assert slot.instances[assignment.placed].device == name
        assert {part.request.shape for part in batch.parts} == {batch.shape}
        assert len({part.request for part in batch.parts}) == len(batch.parts)
        assert slot.policy.combine or len(batch.parts) == 1
        for part in batch.parts:
            request = part.request
            assert request in self.of_slot[slot]
            assert not request.settled
            assert request.deadline is None or self.lab.now < request.deadline
            assert slot.policy.split_rows or part.size == len(request.rows)
            self.started[slot].add(request)
        # First come, first served among equals: whoever stayed behind came later.
        taken = {part.request for part in batch.parts}
        left = [r for r in queued if not r.settled and r not in taken and r.shape == batch.shape]
        for request in taken:
            equal = (request.level, request.delayed, request.passed)
            assert all(
                request.queued <= other.queued
                for other in left
                if (other.level, other.delayed, other.passed) == equal
            )
        device = assignment.device
        assert device.idle >= 0
        assert device.free_cores >= 0
        assert assignment.cores >= 1 or not device.device.cores

    def finish(self, action: Finish) -> None:
        if self.running:
            assignment = self.running.pop(action.running % len(self.running))
            self.lab.finish(assignment, after=action.after)

    def cancel(self, action: Cancel) -> None:
        if action.request < len(self.accepted):
            future, _ = self.accepted[action.request]
            was_done = future.done()
            assert not (future.cancel() and was_done and not future.cancelled())

    def wait(self, action: Wait) -> None:
        self.lab.wait(action.seconds)
        for slot in self.slots:
            for request in slot.state.queue:
                assert request.deadline is None or request.deadline > self.lab.now

    def play(self, action: Any) -> None:
        step: dict[type, Callable[[Any], object]] = {
            Submit: self.submit,
            Take: self.take,
            Finish: self.finish,
            Cancel: self.cancel,
            Wait: self.wait,
        }
        step[type(action)](action)

    def run_dry(self) -> None:
        """Executors work until nothing is left; time passes only when none of them can start."""
        while self.running or any(slot.pending for slot in self.slots):
            asked: list[float] = []
            started = False
            for number in range(len(self.lab.core.devices)):
                while self.take(Take(number)):
                    started = True
                asked += [] if self.lab.ask_again is None else [self.lab.ask_again]
            if self.running:
                self.finish(Finish(0, 0.01))
            elif not started and any(slot.pending for slot in self.slots):
                assert asked, "requests wait and nobody will ever serve them"
                assert min(asked) > self.lab.now
                self.lab.wait(min(asked) - self.lab.now)


def check_outcome(future: Future[Any], rows: list[Row], slot: Slot) -> str:
    """The statistic that the outcome counts for; fails if the outcome is wrong."""
    assert future.done()
    if future.cancelled():
        return "cancelled"
    error = future.exception(timeout=0)
    guilty = any(row.kind != GOOD for row in rows)
    if error is None:
        assert answers(future) == rows
        assert not guilty
        return "succeeded"
    if isinstance(error, Expired):
        return "expired"
    if isinstance(error, SchedulingError):
        assert guilty if isinstance(error, RowFailed) else slot.broken
        return "failed"
    return "cancelled"  # while some of its rows ran


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    devices=devices,
    slot_policies=st.lists(policies(), min_size=1, max_size=3),
    counts=st.lists(st.integers(1, 3), min_size=6, max_size=6),
    history=st.lists(actions, min_size=10, max_size=60),
)
def test_no_request_is_lost_answered_twice_mixed_up_or_started_too_late(
    devices: list[FakeDevice],
    slot_policies: list[dict[str, Any]],
    counts: list[int],
    history: list[Any],
) -> None:
    lab = Lab(*devices, max_requests=25, max_bytes=400)
    slots = []
    for number, policy in enumerate(slot_policies):
        on = devices[number % len(devices) :] or devices
        placed = [(d.name, counts[number * 2 + i]) for i, d in enumerate(on)]
        slots.append(lab.slot(f"slot{number}", model=Fickle(), placed=placed, **policy))
    play = History(lab, slots)
    for action in history:
        play.play(action)
    play.run_dry()
    lab.assert_empty()
    assert Counter(lab.told) == Counter(future for future, _ in play.accepted)
    by_rows = dict(play.accepted)
    for slot in slots:
        futures = play.of_slot[slot.state]
        outcomes = Counter(check_outcome(future, by_rows[future], slot) for future in futures)
        check_statistics(slot, outcomes, play)
        if slot.policy.preserve_ordering:
            completed = [
                future
                for future in lab.told
                if future in set(futures)
                and not future.cancelled()
                and future.exception(timeout=0) is None
            ]
            assert completed == [future for future in futures if future in set(completed)]


def check_statistics(slot: Slot, outcomes: Counter[str], play: History) -> None:
    statistics = slot.statistics()
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
        play.refused[slot],
    )
    assert statistics.queue.count == len(play.started[slot.state])
    assert statistics.batch_sizes.total() == statistics.batches
    assert statistics.close_reasons.total() == statistics.batches
    for step in (statistics.preprocess, statistics.compute, statistics.postprocess):
        assert step.count == sum(step.buckets) == statistics.batches
