"""Deadlines: never started after them, not started when hopeless, and batches that close for them."""

import pytest

from mien_server.scheduling.batching import CloseReason
from mien_server.scheduling.errors import Expired, QueueFull
from mien_server.scheduling.interface import Work
from mien_server.scheduling.queue import Request
from mien_server.scheduling.scheduler import Slot
from mien_server.scheduling.state import DeadlineHeap
from mien_server.scheduling.statistics import ComputeEstimate
from tests.unit.scheduling.virtual import START, Lab, answers, rows_of


def learn(lab: Lab, slot: Slot, *, seconds: float, batches: int = 2) -> None:
    for _ in range(batches):
        slot.submit(Work(rows=["lesson"]))
        lab.finish(lab.taken(), after=seconds)


def test_a_request_leaves_at_its_deadline_though_every_executor_is_busy() -> None:
    lab = Lab()
    slot = lab.slot()
    slot.submit(Work(rows=["runs"]))
    lab.taken()
    waiting = slot.submit(Work(rows=["waits"], deadline=START + 1, nbytes=10))
    assert lab.core.next_expiry() == START + 1
    lab.wait(0.999999)
    assert not waiting.done()
    lab.wait(0.000001)
    with pytest.raises(Expired, match="its deadline passed in the queue of model version 1"):
        waiting.result(timeout=0)
    assert slot.state.queue.nbytes == 0
    assert lab.core.admission.budget.count == 1


def test_a_free_executor_takes_no_request_whose_deadline_has_come() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4)
    late = slot.submit(Work(rows=["late"], deadline=START + 1))
    slot.submit(Work(rows=["on time"], deadline=START + 1.1))
    lab.now = START + 1  # the executor is faster than the timer
    assert rows_of(lab.taken()) == ["on time"]
    assert isinstance(late.exception(timeout=0), Expired)


def test_a_request_that_can_not_be_computed_in_time_is_dropped_before_it_costs_anything() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=1)
    learn(lab, slot, seconds=1.0)
    # Work of accepted calls: new calls would have been refused at the door.
    late = slot.submit(Work(rows=["late"], deadline=lab.now + 2.1, passed=1))
    slot.submit(Work(rows=["feasible"], deadline=lab.now + 2.3, passed=1))
    lab.wait(1.2)
    assert rows_of(lab.taken()) == ["feasible"]
    with pytest.raises(Expired, match="its deadline would pass while model version 1 computes it"):
        late.result(timeout=0)
    assert slot.statistics().expired == 1


def test_a_batch_takes_no_more_than_is_done_before_its_nearest_deadline() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4)
    learn(lab, slot, seconds=0.1)
    for _ in range(2):
        lab.submit_each(slot, range(4))
        lab.finish(lab.taken(), after=0.4)
    slot.submit(Work(rows=["pressed"], deadline=lab.now + 0.2, passed=1))
    for name in ("patient", "also patient", "as patient"):
        slot.submit(Work(rows=[name], deadline=lab.now + 5.0, passed=1))
    batch = lab.taken()
    assert rows_of(batch) == ["pressed"]
    assert batch.batch.reason is CloseReason.URGENT
    lab.finish(batch, after=0.1)
    assert rows_of(lab.taken()) == ["patient", "also patient", "as patient"]


def test_a_new_call_is_refused_if_the_batch_it_would_join_comes_too_late_for_it() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4)
    for _ in range(2):
        lab.submit_each(slot, range(4))
        lab.finish(lab.taken(), after=0.4)
    lab.submit_each(slot, range(3))
    with pytest.raises(QueueFull, match="deadline cannot be met"):
        slot.submit(Work(rows=["joins them"], deadline=lab.now + 0.41))


def test_one_slow_batch_alone_makes_no_deadline_hopeless() -> None:
    lab = Lab()
    slot = lab.slot()
    learn(lab, slot, seconds=30.0, batches=1)
    future = slot.submit(Work(rows=["row"], deadline=lab.now + 0.1))
    lab.finish(lab.taken(), after=0.01)
    assert answers(future) == ["row"]
    assert slot.state.estimate.fastest(1, None, lab.now) == pytest.approx(0.01)


def test_an_idle_executor_does_not_wait_for_company_past_what_a_deadline_allows() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, max_queue_delay=5.0)
    for _ in range(2):
        lab.submit_each(slot, range(4))
        lab.finish(lab.taken(), after=0.2)
    start = lab.now
    slot.submit(Work(rows=["patient"]))
    pressed = slot.submit(Work(rows=["pressed"], deadline=start + 1.0))
    assert lab.take() is None
    assert lab.ask_again is not None
    # A fifth of a second to compute, some headroom, but no hurry.
    assert start + 0.6 < lab.ask_again < start + 0.8
    lab.now = lab.ask_again + 0.001  # threads wake up late
    assignment = lab.taken()
    assert assignment.batch.reason is CloseReason.URGENT
    assert rows_of(assignment) == ["patient", "pressed"]
    lab.finish(assignment, after=0.2)
    assert answers(pressed) == ["pressed"]
    assert lab.now < start + 1.0


def test_of_several_deadlines_the_nearest_ends_the_wait_for_company() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, max_queue_delay=5.0)
    for seconds in (3.0, 1.0, 2.0):
        lab.submit(slot, [seconds], deadline=START + seconds)
    assert lab.take() is None
    assert lab.ask_again is not None
    assert START < lab.ask_again < START + 1.0


def test_a_deadline_shorter_than_the_delay_is_met_though_nothing_is_known_of_the_model() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, max_queue_delay=5.0)
    slot.submit(Work(rows=["row"], deadline=START + 1.0))
    assert lab.take() is None
    assert lab.ask_again is not None
    assert lab.ask_again < START + 1.0
    lab.now = lab.ask_again
    assert lab.taken().batch.reason is CloseReason.URGENT


def test_estimates_fall_at_once_and_rise_slowly() -> None:
    estimate = ComputeEstimate()
    for now, seconds in enumerate([1.0, 1.0, 0.1, 0.1]):
        estimate.learn(1, None, seconds, now)
    assert estimate.fastest(1, None, 4.0) == pytest.approx(0.1)
    assert estimate.typical(1, None, 4.0) == pytest.approx(0.1 + 0.9 * 0.8**2)
    estimate.learn(1, None, 1.1, 4.0)
    assert estimate.fastest(1, None, 4.0) == pytest.approx(0.3)


def test_estimates_of_unknown_sizes_come_from_known_ones() -> None:
    estimate = ComputeEstimate()
    for _ in range(2):
        estimate.learn(4, "a", 0.4, 0.0)
    assert estimate.typical(2, "a", 1.0) == 0.4
    assert estimate.typical(8, "a", 1.0) == pytest.approx(0.8)
    assert estimate.fastest(8, "a", 1.0) == 0.4
    assert estimate.fastest(2, "a", 1.0) == 0.0
    assert estimate.typical(4, "b", 1.0) == 0.0
    assert estimate.row_cost(1.0) == pytest.approx(0.1)


def test_an_estimate_comes_from_the_very_size_or_else_from_the_next_larger_one() -> None:
    estimate = ComputeEstimate()
    for size, seconds in ((2, 0.3), (4, 0.4), (8, 0.9)):
        estimate.learn(size, None, seconds, 0.0)
    assert [estimate.typical(size, None, 0.0) for size in (1, 2, 3, 4, 5)] == [
        0.3, 0.3, 0.4, 0.4, 0.9,
    ]  # fmt: skip
    assert estimate.typical(16, None, 0.0) == pytest.approx(1.8), "scaled up from the largest"


def test_the_least_that_a_batch_takes_is_what_the_largest_cost_of_those_not_larger_says() -> None:
    estimate = ComputeEstimate()
    for size, seconds in ((2, 0.3), (4, 0.4), (8, 0.9)) * 2:
        estimate.learn(size, None, seconds, 0.0)
    assert [estimate.fastest(size, None, 0.0) for size in (1, 2, 7, 8)] == [0.0, 0.3, 0.4, 0.9]


def test_the_cost_of_a_row_follows_the_batches_of_late() -> None:
    estimate = ComputeEstimate()
    for seconds in (1.0, 2.0):
        estimate.learn(1, None, seconds, 0.0)
    assert estimate.row_cost(0.0) == pytest.approx(1.2)


def test_a_row_costs_more_when_several_cores_worked_on_it() -> None:
    estimate = ComputeEstimate()
    estimate.learn(4, None, 0.4, 0.0, units=2)
    assert estimate.row_cost(0.0) == pytest.approx(0.2)


def test_estimates_are_forgotten_ten_seconds_after_their_last_batch() -> None:
    estimate = ComputeEstimate()
    for now in (0.0, 5.0):
        estimate.learn(1, None, 2.0, now)
    assert estimate.typical(1, None, 15.0) == estimate.fastest(1, None, 15.0) == 2.0
    assert estimate.row_cost(15.0) == 2.0
    assert estimate.typical(1, None, 15.1) == estimate.fastest(1, None, 15.1) == 0.0
    assert estimate.row_cost(15.1) == 0.0
    estimate.learn(1, None, 0.5, 15.1)
    assert estimate.typical(1, None, 15.1) == 0.5


def test_shapes_that_callers_make_up_are_forgotten_in_memory_too() -> None:
    estimate = ComputeEstimate()
    for number in range(2_000):
        estimate.learn(1, ("shape", number), 0.1, now=number * 0.1)
    assert len(estimate._seen) <= 102


def waiting(lab: Lab, slot: Slot, count: int) -> list[Request]:
    slot_requests = lab.submit_each(slot, range(count))
    assert all(isinstance(request, Request) for request in slot_requests)
    return slot_requests  # type: ignore[return-value]


def test_the_deadline_heap_gives_what_is_due_in_order_and_only_once() -> None:
    lab = Lab()
    slot = lab.slot()
    requests = waiting(lab, slot, 3)
    heap = DeadlineHeap()
    for at, request in zip([3.0, 1.0, 2.0], requests, strict=True):
        heap.push(at, slot.state, request, waiting=3)
    assert heap.next() == 1.0
    assert heap.due(2.0) == [(slot.state, requests[1]), (slot.state, requests[2])]
    assert heap.due(2.0) == []
    assert heap.next() == 3.0


def test_distant_deadlines_of_answered_requests_hold_no_memory() -> None:
    lab = Lab()
    slot = lab.slot()
    for _ in range(5_000):
        slot.submit(Work(rows=[0], deadline=lab.now + 1e6))
        lab.run_all()
    assert len(lab.core._deadlines) < 2_000
    assert lab.core.next_expiry() is None


def test_compaction_loses_no_deadline_that_still_counts() -> None:
    lab = Lab()
    slot = lab.slot(max_queue_size=10_000)
    kept = [slot.submit(Work(rows=[0], deadline=START + 10 + number)) for number in range(50)]
    for _ in range(3_000):
        assert slot.submit(Work(rows=[0], deadline=START + 1000)).cancel()
    lab.wait(34.5)
    assert [future.done() for future in kept] == [True] * 25 + [False] * 25
