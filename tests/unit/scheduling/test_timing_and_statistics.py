"""Where a request's time went, and what a slot counts of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from mien_server.scheduling.interface import Timing, Work
from mien_server.scheduling.statistics import DURATION_BOUNDS, DurationHistogram
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import START, Lab, Model

COLLATE, COMPUTE, SPLIT = 0.25, 2.0, 0.5


class Slow(Model):
    """Takes its time for each of the three steps."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        super().__init__(**options)
        self._lab = lab

    def collate(self, rows: Sequence[Any]) -> list[Any]:
        self._lab.now += COLLATE
        return super().collate(rows)

    def compute(self, batch: list[Any]) -> list[Any]:
        self._lab.now += COMPUTE
        return super().compute(batch)

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        self._lab.now += SPLIT
        return super().split(outputs, rows)


def test_a_request_is_told_its_wait_and_the_time_of_each_step_of_its_batch() -> None:
    lab = Lab()
    slot = lab.slot(model=Slow(lab), max_batch_size=4)
    first = lab.submit(slot, [0])
    lab.wait(1.0)
    second = lab.submit(slot, [1, 2])
    lab.wait(0.5)
    lab.run_all()
    assert first.result().timing == Timing(1.5, COLLATE, COMPUTE, SPLIT, batch_rows=3)
    assert second.result().timing == Timing(0.5, COLLATE, COMPUTE, SPLIT, batch_rows=3)


def test_a_request_is_told_when_its_batch_began_and_which_it_was() -> None:
    lab = Lab()
    slot = lab.slot(model=Slow(lab), max_batch_size=2)
    first, second, third = lab.submit_each(slot, range(3))
    lab.wait(1.0)
    lab.run_all()
    timings = [each.result().timing for each in (first, second, third)]
    whole = COLLATE + COMPUTE + SPLIT
    assert [t.began - START for t in timings] == [1.0, 1.0, 1.0 + whole]
    assert timings[0].batch == timings[1].batch != timings[2].batch


def test_the_time_of_rows_that_run_singly_is_that_of_all_of_them() -> None:
    lab = Lab()
    slot = lab.slot(model=Slow(lab, fails={"bad"}), max_batch_size=4)
    good, *_ = lab.submit_each(slot, ["good", "bad", "good too"])
    lab.run_all()
    # What raised before its end has no steps to tell of.
    assert good.result().timing == Timing(0.0, 2 * COLLATE, 2 * COMPUTE, 2 * SPLIT, batch_rows=1)


def test_the_time_of_a_request_in_several_batches_is_that_of_the_last() -> None:
    lab = Lab()
    slot = lab.slot(model=Slow(lab), max_batch_size=2, split_rows=True)
    future = lab.submit(slot, range(3))
    lab.wait(1.0)
    lab.run_all()
    first = COLLATE + COMPUTE + SPLIT
    assert future.result().timing == Timing(1.0 + first, COLLATE, COMPUTE, SPLIT, batch_rows=1)


def test_a_slot_counts_what_its_batches_and_its_answered_requests_took() -> None:
    lab = Lab()
    slot = lab.slot(model=Slow(lab), max_batch_size=2)
    lab.submit_each(slot, [0, 1, 2])
    lab.wait(1.0)
    whole = COLLATE + COMPUTE + SPLIT
    lab.run_all()
    seen = slot.statistics()
    assert (seen.preprocess.seconds, seen.preprocess.count) == (2 * COLLATE, 2)
    assert (seen.compute.seconds, seen.postprocess.seconds) == (2 * COMPUTE, 2 * SPLIT)
    assert (seen.latency.seconds, seen.latency.count) == (3 * 1.0 + whole * (1 + 1 + 2), 3)
    assert (seen.served.count, seen.served.queue) == (3, 1.0 + 1.0 + 1.0 + whole)
    assert seen.served.preprocess == 3 * COLLATE
    assert (seen.served.compute, seen.served.postprocess) == (3 * COMPUTE, 3 * SPLIT)
    assert {rows: spent.count for rows, spent in seen.batch_seconds.items()} == {2: 1, 1: 1}
    assert seen.batch_seconds[2].compute == COMPUTE
    assert seen.batch_seconds[2].queue == 0.0
    assert seen.last_success == START + 1.0 + 2 * whole


def test_figures_that_were_asked_for_do_not_change_any_more() -> None:
    lab = Lab()
    slot = lab.slot()
    lab.submit(slot, [0])
    lab.run_all()
    seen = slot.statistics()
    before = seen.copy()
    lab.submit(slot, [1])
    lab.run_all()
    assert seen == before
    assert slot.statistics() != before


def test_a_duration_on_a_bound_belongs_to_the_bucket_below_it() -> None:
    histogram = DurationHistogram()
    for seconds in (0.0, DURATION_BOUNDS[0], DURATION_BOUNDS[1], DURATION_BOUNDS[-1], 11.0):
        histogram.add(seconds)
    assert [histogram.buckets[at] for at in (0, 1, -2, -1)] == [2, 1, 1, 1]
    assert histogram.count == 5
    assert histogram.seconds == pytest.approx(21.0, abs=0.001)


def test_work_on_several_cores_costs_their_time_together() -> None:
    lab = Lab(FakeDevice(cores=4))
    slot = lab.slot(max_batch_size=2)
    lab.submit_each(slot, [0, 1])
    batch = lab.taken()
    assert batch.cores == 4
    lab.finish(batch, after=0.5)
    assert slot.state.share == {"cpu": 2.0}
    assert slot.state.estimate.row_cost(lab.now) == 1.0
    assert slot.expected_compute(2) == 0.5


def test_work_on_a_gpu_costs_its_executors_time() -> None:
    lab = Lab(FakeDevice("cuda:0", cores=0))
    slot = lab.slot(placed=[("cuda:0", 1)])
    lab.submit(slot, [0])
    lab.finish(lab.taken("cuda:0"), after=0.5)
    assert slot.state.share == {"cuda:0": 0.5}
    assert slot.state.estimate.row_cost(lab.now) == slot.expected_compute() == 0.5


def test_an_arrival_that_the_caller_does_not_know_is_now() -> None:
    lab = Lab()
    one, other = lab.slot("one"), lab.slot("other")
    lab.wait(1.0)
    one.submit(Work(rows=["now"]))
    other.submit(Work(rows=["before"], arrived=START + 0.5))
    assert lab.run_all() == [["before"], ["now"]]
