"""`preserve_ordering`: answers leave in the order of requests, whoever finishes first."""

from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from mien_server.scheduling.errors import Expired, RowFailed
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import START, Lab, Model, answers


def two_executors() -> Lab:
    return Lab(FakeDevice(executors=2, cores=0))


def answered(lab: Lab) -> list[Any]:
    """The rows of all answers so far, in the order in which they left."""
    return [
        row
        for future in lab.told
        if not future.cancelled() and future.exception() is None
        for row in answers(future)
    ]


def done(futures: list[Future[Any]]) -> list[bool]:
    return [future.done() for future in futures]


def test_an_answer_waits_for_those_of_earlier_requests() -> None:
    lab = two_executors()
    futures = lab.submit_each(lab.slot(preserve_ordering=True), [0, 1, 2])
    first, second = lab.taken(), lab.taken()
    lab.finish(second)
    third = lab.taken()
    lab.finish(third)
    assert done(futures) == [False, False, False]
    lab.finish(first)
    assert answered(lab) == [0, 1, 2]
    lab.assert_empty()


def test_without_it_answers_leave_as_they_come() -> None:
    lab = two_executors()
    lab.submit_each(lab.slot(), [0, 1])
    first, second = lab.taken(), lab.taken()
    lab.finish(second)
    lab.finish(first)
    assert answered(lab) == [1, 0]


def test_failures_expiry_and_cancellation_in_between_hold_nobody_back() -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True, model=Model(fails={"fails"}))
    slow = lab.submit(slot, ["slow"])
    running = lab.taken()
    failing = lab.submit(slot, ["fails"])
    lab.finish(lab.taken())
    expiring = lab.submit(slot, ["expires"], deadline=START + 1)
    cancelled = lab.submit(slot, ["cancelled"])
    last = lab.submit(slot, ["last"])
    assert cancelled.cancel()
    lab.wait(1.0)
    lab.finish(lab.taken())
    assert isinstance(failing.exception(timeout=0), RowFailed)
    assert isinstance(expiring.exception(timeout=0), Expired)
    assert done([slow, last]) == [False, False]
    lab.finish(running)
    assert answered(lab) == ["slow", "last"]
    lab.assert_empty()


@pytest.mark.parametrize("model", [Model(fails={"head"}), Model(kills={"head"})])
def test_a_head_that_fails_releases_the_answers_behind_it(model: Model) -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True, model=model)
    head = lab.submit(slot, ["head"])
    running = lab.taken()
    behind = lab.submit_each(slot, [1, 2])
    lab.run_all()
    assert done(behind) == [False, False]
    lab.finish(running)
    assert isinstance(head.exception(timeout=0), RowFailed)
    assert answered(lab) == [1, 2]
    lab.assert_empty()


@pytest.mark.parametrize("leaves_by", ["expiry", "cancellation"])
def test_a_head_that_leaves_the_queue_releases_the_answers_behind_it(leaves_by: str) -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True)
    head = lab.submit(slot, ["head"], deadline=START + 5)
    # Work that has passed more is served before it, and so is ready before it.
    behind = lab.submit(slot, ["behind"], passed=1)
    lab.finish(lab.taken())
    assert not behind.done()
    if leaves_by == "expiry":
        lab.wait(5.0)
    else:
        assert head.cancel()
    assert answers(behind) == ["behind"]
    lab.assert_empty()


def test_a_held_answer_survives_its_callers_late_cancellation() -> None:
    lab = two_executors()
    held = lab.submit_each(lab.slot(preserve_ordering=True), [0, 1])
    first, second = lab.taken(), lab.taken()
    lab.finish(second)
    assert not held[1].cancel()
    lab.finish(first)
    assert answers(held[1]) == [1]


def test_rows_of_several_batches_keep_the_order_too() -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True, max_batch_size=2, split_rows=True)
    futures = [lab.submit(slot, [0, 1, 2]), lab.submit(slot, [3])]
    first, second = lab.taken(), lab.taken()
    lab.finish(second)
    assert done(futures) == [False, False]
    lab.finish(first)
    assert answered(lab) == [0, 1, 2, 3]


def test_answers_that_come_up_while_a_thread_delivers_leave_behind_its_own() -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True)
    lab.submit_each(slot, [0, 1])
    first, second = lab.taken(), lab.taken()
    for assignment in (first, second):
        assignment.run.run(lambda: lab.now)
    under_way = lab.core.finish(first, lab.now)
    assert lab.core.finish(second, lab.now) == []
    lab.tell(under_way)
    assert answered(lab) == [0, 1]


def test_a_cancelled_request_in_the_middle_of_running_rows_ends_cancelled() -> None:
    lab = two_executors()
    slot = lab.slot(preserve_ordering=True, max_batch_size=2, split_rows=True)
    future, behind = lab.submit(slot, [0, 1, 2, 3]), lab.submit(slot, [4])
    running = lab.taken()
    assert future.cancel()
    lab.finish(running)
    lab.run_all()
    with pytest.raises(CancelledError):
        future.result(timeout=0)
    assert answers(behind) == [4]
    lab.assert_empty()
