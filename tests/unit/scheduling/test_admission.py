"""Who is refused at the door: full queues, a full server, deadlines that cannot be met."""

from typing import Any

import pytest

from mien_server.scheduling.batching import QueuePolicy, TimeoutAction
from mien_server.scheduling.errors import Draining, Expired, QueueFull, Unavailable
from mien_server.scheduling.interface import BACKGROUND, Work
from mien_server.scheduling.scheduler import Slot
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import START, Lab, Model, answers, rows_of


def test_a_full_slot_refuses_and_takes_again_once_one_has_left() -> None:
    lab = Lab()
    slot = lab.slot(max_queue_size=2)
    lab.submit_each(slot, [0, 1])
    with pytest.raises(QueueFull, match=r"queue of model version 1 is full \(2 requests\)"):
        slot.submit(Work(rows=[2]))
    running = lab.taken()
    accepted = slot.submit(Work(rows=[3]))
    lab.finish(running)
    lab.run_all()
    assert answers(accepted) == [3]
    assert slot.statistics().rejected == 1


def test_a_slot_limits_the_bytes_that_wait() -> None:
    lab = Lab()
    slot = lab.slot(max_queue_bytes=100)
    slot.submit(Work(rows=[0], nbytes=60))
    with pytest.raises(QueueFull, match="100 bytes"):
        slot.submit(Work(rows=[1], nbytes=41))
    slot.submit(Work(rows=[2], nbytes=40))


def test_the_server_limits_requests_over_all_slots_and_counts_those_that_run() -> None:
    lab = Lab(max_requests=2)
    one, other = lab.slot("one"), lab.slot("other")
    one.submit(Work(rows=[0]))
    running = lab.taken()
    other.submit(Work(rows=[1]))
    with pytest.raises(QueueFull, match=r"the server is full \(2 requests\)"):
        one.submit(Work(rows=[2]))
    lab.finish(running)
    one.submit(Work(rows=[3]))


def test_the_server_limits_bytes_over_all_slots() -> None:
    lab = Lab(max_bytes=100)
    one, other = lab.slot("one"), lab.slot("other")
    held = one.submit(Work(rows=[0], nbytes=60))
    with pytest.raises(QueueFull, match=r"the server is full \(100 bytes\)"):
        other.submit(Work(rows=[1], nbytes=60))
    assert held.cancel()
    other.submit(Work(rows=[2], nbytes=100))


def test_further_work_of_accepted_calls_passes_every_limit() -> None:
    lab = Lab(max_requests=1)
    slot = lab.slot(max_queue_size=1)
    slot.submit(Work(rows=[0]))
    later = slot.submit(Work(rows=[1], passed=1))
    lab.core.drain()
    lab.core.close_slot(slot.state)
    last = slot.submit(Work(rows=[2], passed=1))
    lab.run_all()
    assert (answers(later), answers(last)) == ([1], [2])


def test_new_calls_are_refused_while_the_server_drains_or_the_slot_closes() -> None:
    lab = Lab()
    closing, open_slot = lab.slot("closing"), lab.slot("open")
    closing.submit(Work(rows=["keeps it open"]))
    lab.core.close_slot(closing.state)
    with pytest.raises(Draining, match="closing version 1 is being unloaded"):
        closing.submit(Work(rows=[0]))
    open_slot.submit(Work(rows=[0]))
    lab.core.drain()
    with pytest.raises(Draining, match="the server is shutting down"):
        open_slot.submit(Work(rows=[1]))


def test_nothing_enters_a_slot_that_has_been_removed_not_even_for_an_accepted_call() -> None:
    lab = Lab()
    slot = lab.slot()
    assert lab.core.close_slot(slot.state)
    with pytest.raises(Draining, match="has been unloaded"):
        slot.submit(Work(rows=[0], passed=1))


def test_a_broken_slot_says_why() -> None:
    lab = Lab()
    slot = lab.slot(model=Model(kills={"killer"}))
    lab.submit_each(slot, ["killer"] * 3)
    lab.run_all()
    assert slot.broken.startswith("6 executors in a row died")
    with pytest.raises(
        Unavailable, match="model version 1 is unhealthy: 6 executors in a row died"
    ):
        slot.submit(Work(rows=[0], passed=1))


def test_a_slot_is_closed_once_nothing_of_it_waits_or_runs() -> None:
    lab = Lab()
    slot, other = lab.slot(max_batch_size=2, split_rows=True), lab.slot("other")
    future = lab.submit(slot, range(4))
    running = lab.taken()
    assert not lab.core.close_slot(slot.state)
    assert future.cancel()
    assert not lab.core.close_slot(slot.state), "its first rows run"
    lab.finish(running)
    assert lab.core.close_slot(slot.state)
    assert lab.core.slots == [other.state]
    assert lab.core.close_slot(slot.state), "and asking again changes nothing"


def test_a_server_is_drained_once_every_accepted_request_is_settled() -> None:
    lab = Lab()
    one, other = lab.slot("one"), lab.slot("other")
    lab.submit(one, [0])
    waiting = lab.submit(other, [1])
    lab.finish(lab.taken())
    assert not lab.core.drain()
    assert waiting.cancel()
    assert lab.core.drain()


def test_a_deadline_that_has_passed_is_refused_as_expired() -> None:
    slot = Lab().slot()
    with pytest.raises(Expired, match="deadline passed before it reached the queue"):
        slot.submit(Work(rows=[0], deadline=START))
    with pytest.raises(Expired):
        slot.submit(Work(rows=[0], deadline=START - 1, passed=1))


def learn(lab: Lab, slot: Slot, *, seconds: float, batches: int = 2) -> None:
    """Lets the slot find out what a batch of one row costs."""
    for _ in range(batches):
        slot.submit(Work(rows=["lesson"]))
        lab.finish(lab.taken(), after=seconds)


@pytest.mark.parametrize("policy", [{}, {"max_batch_size": 8, "combine": False}])
def test_a_deadline_that_the_queue_makes_impossible_is_refused_with_a_time_to_retry(
    policy: dict[str, Any],
) -> None:
    lab = Lab()
    slot = lab.slot(**policy)
    learn(lab, slot, seconds=0.1)
    lab.submit_each(slot, range(5))
    with pytest.raises(QueueFull, match="about 500 ms long and the deadline cannot be met") as full:
        slot.submit(Work(rows=["hopeless"], deadline=lab.now + 0.74))
    assert full.value.retry_after == pytest.approx(0.5)
    # 0.6 s, and a quarter more for what takes longer than usual.
    feasible = slot.submit(Work(rows=["feasible"], deadline=lab.now + 0.76))
    lab.run_all(seconds=0.1)
    assert answers(feasible) == ["feasible"]


@pytest.mark.parametrize(
    ("policy", "waiting", "rows", "takes"),
    [({}, 3, 1, 0.3 + 0.4), ({"preferred_batch_sizes": (2,)}, 1, 4, 0.1 + 0.4)],
)
def test_a_call_is_expected_to_take_as_long_as_the_batch_that_it_shares(
    policy: dict[str, Any], waiting: int, rows: int, takes: float
) -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, **policy)
    for size in (2, 2, 4, 4):
        lab.submit(slot, range(size))
        lab.finish(lab.taken(), after=0.1 * size)
    lab.submit_each(slot, range(waiting))
    needed = takes * 1.25 + 0.002
    with pytest.raises(QueueFull, match="deadline cannot be met"):
        lab.submit(slot, range(rows), deadline=lab.now + needed - 0.001)
    lab.submit(slot, range(rows), deadline=lab.now + needed + 0.001)


def test_the_time_to_retry_is_bounded_on_both_sides() -> None:
    lab = Lab()
    slot = lab.slot(max_queue_size=2)
    lab.submit_each(slot, range(2))
    with pytest.raises(QueueFull) as soon:
        slot.submit(Work(rows=[2]))
    assert soon.value.retry_after == pytest.approx(0.05)
    lab.run_all(seconds=60.0)
    lab.submit_each(slot, range(2))
    with pytest.raises(QueueFull) as late:
        slot.submit(Work(rows=[2]))
    assert late.value.retry_after == pytest.approx(5.0)


def test_an_urgent_call_is_not_refused_for_a_backlog_that_it_overtakes() -> None:
    lab = Lab()
    slot = lab.slot(priority_levels=2, default_priority_level=2)
    learn(lab, slot, seconds=0.1)
    lab.submit_each(slot, range(50))
    with pytest.raises(QueueFull):
        slot.submit(Work(rows=["usual"], deadline=lab.now + 1.0))
    slot.submit(Work(rows=["urgent"], priority=1, deadline=lab.now + 1.0))
    assert rows_of(lab.taken()) == ["urgent"]


@pytest.mark.parametrize("kind", ["delayed", "background"])
def test_a_backlog_that_a_call_would_overtake_refuses_it_nothing(kind: str) -> None:
    lab = Lab()
    override = QueuePolicy(TimeoutAction.DELAY, allow_timeout_override=True)
    slot = lab.slot(default_queue_policy=override)
    learn(lab, slot, seconds=0.1)
    backlog = {"timeout": 1.0} if kind == "delayed" else {"passed": BACKGROUND}
    lab.submit_each(slot, range(50), **backlog)
    lab.wait(2.0)
    slot.submit(Work(rows=["call"], deadline=lab.now + 0.2))
    assert rows_of(lab.taken()) == ["call"]


def test_rows_that_a_batch_has_taken_are_no_backlog_any_more() -> None:
    lab = Lab(FakeDevice(executors=2, cores=0))
    slot = lab.slot(max_batch_size=4, split_rows=True)
    for _ in range(2):
        lab.submit(slot, range(4))
        lab.finish(lab.taken(), after=0.4)
    lab.submit(slot, range(6))
    lab.taken()
    assert slot.state.queue.rows == 2
    # Two executors share the two rows that are left, at 0.1 s each.
    with pytest.raises(QueueFull, match="about 100 ms"):
        lab.submit(slot, [0], deadline=lab.now + 0.1)


def test_a_backlog_of_another_slot_counts_only_by_the_share_it_is_due() -> None:
    lab = Lab()
    flooded, calm = lab.slot("flooded"), lab.slot("calm")
    for slot in (flooded, calm):
        learn(lab, slot, seconds=0.1)
    lab.submit_each(flooded, range(100))
    calm.submit(Work(rows=["one before"]))
    calm.submit(Work(rows=["accepted"], deadline=lab.now + 0.5))
    with pytest.raises(QueueFull, match="about 400 ms"):
        calm.submit(Work(rows=["refused"], deadline=lab.now + 0.45))


def test_more_cores_make_the_same_queue_shorter() -> None:
    lab = Lab(FakeDevice(executors=4, cores=4))
    slot = lab.slot()
    for _ in range(2):
        lab.submit_each(slot, range(4))
        first, *others = [lab.taken() for _ in range(4)]
        lab.finish(first, after=0.1)
        for running in others:
            lab.finish(running)
    lab.submit_each(slot, range(16))
    with pytest.raises(QueueFull, match="about 400 ms"):
        slot.submit(Work(rows=["refused"], deadline=lab.now + 0.4))


def test_estimates_are_forgotten_after_ten_seconds_and_refuse_nothing_any_more() -> None:
    lab = Lab()
    slot = lab.slot()
    learn(lab, slot, seconds=1.0)
    lab.wait(10.1)
    lab.submit_each(slot, range(50))
    accepted = slot.submit(Work(rows=["row"], deadline=lab.now + 0.1))
    assert not accepted.done()
    assert slot.expected_compute() == 0.0
