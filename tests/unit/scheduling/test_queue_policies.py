"""Priorities, queue timeouts, and what a batching policy refuses."""

from typing import Any

import pytest

from mien_server.scheduling.batching import BatchingPolicy, CloseReason, QueuePolicy, TimeoutAction
from mien_server.scheduling.errors import Expired, QueueFull
from mien_server.scheduling.interface import Work
from tests.unit.scheduling.virtual import START, Lab, answers, rows_of

DELAY = QueuePolicy(timeout_action=TimeoutAction.DELAY, default_timeout=1.0)
REJECT = QueuePolicy(default_timeout=1.0)


def test_a_more_urgent_level_is_served_first_and_each_level_in_the_order_of_arrival() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=2, priority_levels=3, default_priority_level=2)
    for number, level in enumerate([3, 2, 1, 0, 1, 3]):
        slot.submit(Work(rows=[number], priority=level))
    assert lab.run_all() == [[2, 4], [1, 3], [0, 5]]


@pytest.mark.parametrize("priority", [0, 4, 99])
def test_a_priority_that_the_model_does_not_have_means_its_default(priority: int) -> None:
    lab = Lab()
    slot = lab.slot(priority_levels=3, default_priority_level=2)
    for number, level in enumerate([3, priority, 1]):
        slot.submit(Work(rows=[number], priority=level))
    assert lab.run_all() == [[2], [1], [0]]


def test_a_model_without_levels_ignores_priorities() -> None:
    lab = Lab()
    slot = lab.slot()
    slot.submit(Work(rows=[0], priority=9))
    slot.submit(Work(rows=[1], priority=1))
    assert lab.run_all() == [[0], [1]]


def test_less_urgent_requests_fill_the_rest_of_a_batch() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=3, priority_levels=2, default_priority_level=2)
    lab.submit_each(slot, ["late", "later"])
    slot.submit(Work(rows=["urgent"], priority=1))
    assert lab.run_all() == [["urgent", "late", "later"]]


def test_reject_answers_expired_when_the_timeout_passes_while_the_executor_is_busy() -> None:
    lab = Lab()
    slot = lab.slot(default_queue_policy=REJECT)
    slot.submit(Work(rows=["runs"]))
    running = lab.taken()
    waiting = slot.submit(Work(rows=["waits"]))
    lab.wait(0.999)
    assert not waiting.done()
    lab.wait(0.001)
    with pytest.raises(Expired, match="its timeout passed in the queue of model version 1"):
        waiting.result(timeout=0)
    lab.finish(running)
    assert lab.run_all() == []
    assert slot.statistics().expired == 1
    lab.assert_empty()


def test_a_request_that_runs_when_its_timeout_passes_is_answered() -> None:
    lab = Lab()
    slot = lab.slot(default_queue_policy=REJECT)
    future = slot.submit(Work(rows=["row"]))
    lab.finish(lab.taken(), after=5.0)
    assert answers(future) == ["row"]


def test_delay_serves_a_request_after_all_others_of_its_level_but_before_the_next_level() -> None:
    lab = Lab()
    slot = lab.slot(default_queue_policy=DELAY, priority_levels=2, default_priority_level=1)
    late = slot.submit(Work(rows=["late"]))
    slot.submit(Work(rows=["low"], priority=2))
    lab.wait(1.0)
    slot.submit(Work(rows=["fresh"]))
    assert lab.run_all() == [["fresh"], ["late"], ["low"]]
    assert answers(late) == ["late"]
    assert slot.statistics().expired == 0


def test_delayed_requests_keep_their_order_and_their_deadline() -> None:
    lab = Lab()
    slot = lab.slot(default_queue_policy=DELAY)
    doomed = slot.submit(Work(rows=["doomed"], deadline=START + 1.5))
    lab.submit_each(slot, ["first", "second"])
    lab.wait(1.0)
    slot.submit(Work(rows=["fresh"]))
    lab.wait(0.5)
    with pytest.raises(Expired, match="its deadline passed"):
        doomed.result(timeout=0)
    assert lab.run_all() == [["fresh"], ["first"], ["second"]]


def test_each_level_has_its_own_policy() -> None:
    lab = Lab()
    slot = lab.slot(
        priority_levels=2,
        default_priority_level=1,
        default_queue_policy=REJECT,
        priority_queue_policy={2: QueuePolicy(max_queue_size=1)},
    )
    bounded = slot.submit(Work(rows=["low"], priority=2))
    with pytest.raises(QueueFull, match=r"full for priority 2 \(1 requests\)"):
        slot.submit(Work(rows=["low too"], priority=2))
    timed = slot.submit(Work(rows=["high"]))
    lab.submit_each(slot, ["high too"])
    lab.wait(1.0)
    assert isinstance(timed.exception(timeout=0), Expired)
    assert not bounded.done()


@pytest.mark.parametrize(
    ("policy", "requested", "holds"),
    [
        (QueuePolicy(), None, None),
        (QueuePolicy(), 0.5, None),
        (QueuePolicy(allow_timeout_override=True), 0.5, 0.5),
        (QueuePolicy(default_timeout=1.0), 0.5, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 0.5, 0.5),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 2.0, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 0.0, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), -1.0, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), None, 1.0),
    ],
)
def test_a_requests_own_timeout_may_only_shorten(
    policy: QueuePolicy, requested: float | None, holds: float | None
) -> None:
    lab = Lab()
    slot = lab.slot(default_queue_policy=policy)
    future = slot.submit(Work(rows=["row"], timeout=requested))
    assert lab.core.next_expiry() == (None if holds is None else START + holds)
    lab.wait(100.0 if holds is None else holds)
    assert future.done() == (holds is not None)


def test_timeouts_pass_one_by_one_and_the_batch_takes_the_rest() -> None:
    lab = Lab()
    override = QueuePolicy(allow_timeout_override=True)
    slot = lab.slot(max_batch_size=4, max_queue_delay=1.0, default_queue_policy=override)
    short = slot.submit(Work(rows=["short"], timeout=0.5))
    slot.submit(Work(rows=["long"]))
    assert lab.take() is None
    lab.wait(0.5)
    assert isinstance(short.exception(timeout=0), Expired)
    lab.wait(0.5)
    last = lab.taken()
    assert rows_of(last) == ["long"]
    assert last.batch.reason is CloseReason.DELAY


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        (
            {"max_batch_size": 4, "preferred_batch_sizes": (8,)},
            r"preferred_batch_size 8 must be in \[1, 4\]",
        ),
        ({"preferred_batch_sizes": (0,)}, "preferred_batch_size 0"),
        (
            {"max_batch_size": 4, "preferred_batch_sizes": (4, 2)},
            "preferred_batch_size .*ascending",
        ),
        (
            {"max_batch_size": 4, "preferred_batch_sizes": (2, 2)},
            "preferred_batch_size .*repetition",
        ),
        ({"max_queue_delay": -0.1}, "max_queue_delay_microseconds"),
        ({"priority_levels": -1}, "priority_levels"),
        ({"priority_levels": 2}, r"default_priority_level must be in \[1, 2\]"),
        ({"priority_levels": 2, "default_priority_level": 3}, "default_priority_level"),
        ({"default_priority_level": 3}, "default_priority_level 3 needs priority_levels"),
        (
            {
                "priority_levels": 2,
                "default_priority_level": 1,
                "priority_queue_policy": {3: QueuePolicy()},
            },
            r"level 3, outside \[1, 2\]",
        ),
        ({"priority_queue_policy": {1: QueuePolicy()}}, "level 1, outside"),
        (
            {"preserve_ordering": True, "priority_levels": 2, "default_priority_level": 1},
            "preserve_ordering excludes more than one priority level",
        ),
        (
            {"preserve_ordering": True, "default_queue_policy": DELAY},
            "preserve_ordering excludes timeout_action DELAY",
        ),
        (
            {
                "preserve_ordering": True,
                "priority_levels": 1,
                "default_priority_level": 1,
                "priority_queue_policy": {1: DELAY},
            },
            "preserve_ordering excludes timeout_action DELAY",
        ),
        ({"max_queue_size": 0}, "queue limits must be at least 1"),
        ({"max_queue_bytes": 0}, "queue limits must be at least 1"),
        ({"look_ahead": -1}, "look_ahead"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_by_the_name_of_its_field(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        BatchingPolicy(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"default_timeout": -1.0}, "default_timeout_microseconds"),
        ({"max_queue_size": -1}, "max_queue_size"),
    ],
)
def test_a_queue_policy_that_cannot_hold_is_refused(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        QueuePolicy(**options)
