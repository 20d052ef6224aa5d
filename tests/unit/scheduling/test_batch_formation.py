"""Which waiting requests share a batch and when it closes: the scenarios of Triton's L0_batcher, and ours.

Rows are numbered in the order of their arrival, so that a batch shows who is in it.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from mien_server.scheduling.batching import CloseReason
from mien_server.scheduling.interface import Work
from tests.unit.scheduling.virtual import START, Lab, answers, rows_of

DELAY = 0.5


def formed(lab: Lab) -> list[tuple[list[int], CloseReason]]:
    """What one executor runs now, batch by batch, and why each closed."""
    batches = []
    while (assignment := lab.take()) is not None:
        batches.append((rows_of(assignment), assignment.batch.reason))
        lab.finish(assignment)
    return batches


def test_exactly_the_preferred_size_closes_at_once_though_a_delay_is_allowed() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(2, 6), max_queue_delay=DELAY)
    lab.submit_each(slot, range(6))
    assert formed(lab) == [([0, 1, 2, 3, 4, 5], CloseReason.PREFERRED)]


def test_more_than_the_preferred_size_leaves_the_rest_to_wait_for_company() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay=DELAY)
    lab.submit_each(slot, range(7))
    assert formed(lab) == [([0, 1, 2, 3], CloseReason.PREFERRED)]
    assert lab.ask_again == START + DELAY
    lab.wait(DELAY)
    assert formed(lab) == [([4, 5, 6], CloseReason.DELAY)]


def test_fewer_than_the_preferred_size_wait_until_the_oldest_has_waited_long_enough() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay=DELAY)
    lab.submit_each(slot, [0])
    lab.wait(DELAY / 2)
    lab.submit_each(slot, [1, 2])
    assert formed(lab) == []
    assert lab.ask_again == START + DELAY
    lab.wait(DELAY / 2)
    assert formed(lab) == [([0, 1, 2], CloseReason.DELAY)]


def test_company_that_comes_in_time_closes_a_waiting_batch() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay=DELAY)
    lab.submit_each(slot, [0, 1, 2])
    assert formed(lab) == []
    lab.wait(DELAY / 2)
    lab.submit_each(slot, [3])
    assert formed(lab) == [([0, 1, 2, 3], CloseReason.PREFERRED)]


def test_a_number_that_is_no_multiple_of_the_preferred_size_runs_in_preferred_sizes_and_a_rest() -> (
    None
):
    lab = Lab()
    slot = lab.slot(max_batch_size=4, preferred_batch_sizes=(3,))
    lab.submit_each(slot, range(8))
    assert formed(lab) == [
        ([0, 1, 2], CloseReason.PREFERRED),
        ([3, 4, 5], CloseReason.PREFERRED),
        ([6, 7], CloseReason.DELAY),
    ]


def test_of_several_preferred_sizes_the_largest_that_is_reached_closes() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(2, 4, 6), max_queue_delay=DELAY)
    lab.submit_each(slot, range(5))
    assert formed(lab) == [([0, 1, 2, 3], CloseReason.PREFERRED)]
    lab.submit_each(slot, [5, 6])
    assert formed(lab) == [([4, 5], CloseReason.PREFERRED)]


def test_without_preferred_sizes_the_maximum_is_the_preferred_size() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, max_queue_delay=DELAY)
    lab.submit_each(slot, range(6))
    assert formed(lab) == [([0, 1, 2, 3], CloseReason.FULL)]
    assert lab.ask_again == START + DELAY


def test_a_preferred_size_equal_to_the_maximum_counts_as_full() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, preferred_batch_sizes=(2, 4))
    lab.submit_each(slot, range(4))
    assert formed(lab) == [([0, 1, 2, 3], CloseReason.FULL)]


def test_without_a_delay_a_free_executor_takes_what_there_is() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(4,))
    lab.submit_each(slot, [0])
    assert formed(lab) == [([0], CloseReason.DELAY)]


def test_requests_that_come_while_the_executor_is_busy_share_its_next_batch() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8)
    lab.submit_each(slot, [0])
    running = lab.taken()
    lab.submit_each(slot, [1, 2, 3])
    assert lab.take() is None
    lab.finish(running, after=0.1)
    assert formed(lab) == [([1, 2, 3], CloseReason.DELAY)]


def test_requests_of_several_rows_fill_a_batch_together() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(6,), max_queue_delay=DELAY)
    first = slot.submit(Work(rows=[0, 1, 2]))
    slot.submit(Work(rows=[3]))
    assert formed(lab) == []
    last = slot.submit(Work(rows=[4, 5]))
    assert formed(lab) == [([0, 1, 2, 3, 4, 5], CloseReason.PREFERRED)]
    assert answers(first) == [0, 1, 2]
    assert answers(last) == [4, 5]


def test_a_preferred_size_inside_a_request_is_not_reached() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=16, preferred_batch_sizes=(4, 12), max_queue_delay=DELAY)
    slot.submit(Work(rows=[0, 1, 2]))
    slot.submit(Work(rows=[3, 4]))
    assert formed(lab) == []
    lab.wait(DELAY)
    assert formed(lab) == [([0, 1, 2, 3, 4], CloseReason.DELAY)]


def test_one_request_larger_than_every_preferred_size_runs_at_once() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(2, 6), max_queue_delay=DELAY)
    slot.submit(Work(rows=range(7)))
    assert formed(lab) == [([0, 1, 2, 3, 4, 5, 6], CloseReason.PREFERRED)]


def test_requests_that_together_pass_every_preferred_size_have_nothing_to_wait_for() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(2, 6), max_queue_delay=DELAY)
    slot.submit(Work(rows=[0, 1, 2]))
    assert formed(lab) == []
    slot.submit(Work(rows=[3, 4, 5, 6]))
    assert formed(lab) == [([0, 1, 2, 3, 4, 5, 6], CloseReason.PREFERRED)]


def test_a_request_that_does_not_fit_ends_the_batch_and_is_not_overtaken_by_smaller_ones() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, max_queue_delay=DELAY)
    slot.submit(Work(rows=[0, 1, 2]))
    slot.submit(Work(rows=[3, 4]))
    slot.submit(Work(rows=[5]))
    assert formed(lab) == [([0, 1, 2], CloseReason.FULL)]
    lab.wait(DELAY)
    assert formed(lab) == [([3, 4, 5], CloseReason.DELAY)]


def test_rows_of_a_request_stay_together_unless_the_model_says_otherwise() -> None:
    lab = Lab()
    whole = lab.slot("whole", max_batch_size=4)
    with pytest.raises(ValueError, match="takes 1 to 4 rows a request, not 5"):
        whole.submit(Work(rows=[0, 1, 2, 3, 4]))
    split = lab.slot("split", max_batch_size=4, split_rows=True)
    first = split.submit(Work(rows=[0, 1, 2]))
    second = split.submit(Work(rows=[3, 4, 5, 6, 7, 8]))
    assert formed(lab) == [
        ([0, 1, 2, 3], CloseReason.FULL),
        ([4, 5, 6, 7], CloseReason.FULL),
        ([8], CloseReason.DELAY),
    ]
    assert answers(first) == [0, 1, 2]
    assert answers(second) == [3, 4, 5, 6, 7, 8]
    assert second.result().timing.batch_rows == 1, "the last of its batches"
    lab.assert_empty()


def test_requests_that_are_not_combined_run_whole_and_at_once_each_by_itself() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, combine=False, max_queue_delay=DELAY)
    slot.submit(Work(rows=[0, 1, 2]))
    slot.submit(Work(rows=[3], shape="other"))
    slot.submit(Work(rows=[4, 5, 6, 7]))
    slot.submit(Work(rows=[8]))
    assert formed(lab) == [
        ([0, 1, 2], CloseReason.ALONE),
        ([3], CloseReason.ALONE),
        ([4, 5, 6, 7], CloseReason.ALONE),
        ([8], CloseReason.ALONE),
    ]
    with pytest.raises(ValueError, match="takes 1 to 4 rows a request, not 5"):
        slot.submit(Work(rows=range(5)))


def test_the_rest_of_a_request_that_is_split_is_not_combined_with_another() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, combine=False, split_rows=True)
    slot.submit(Work(rows=range(5)))
    slot.submit(Work(rows=[5]))
    assert lab.run_all() == [[0, 1, 2, 3], [4], [5]]


def test_a_request_without_rows_is_refused() -> None:
    slot = Lab().slot(max_batch_size=4)
    with pytest.raises(ValueError, match="takes 1 to 4 rows a request, not 0"):
        slot.submit(Work(rows=[]))


def of_shapes(lab: Lab, shapes: Sequence[str], **policy: Any) -> None:
    slot = lab.slot(**policy)
    for number, shape in enumerate(shapes):
        slot.submit(Work(rows=[number], shape=shape))


def test_a_batch_steps_over_another_shape_in_between() -> None:
    lab = Lab()
    of_shapes(lab, "abaab", max_batch_size=3, max_queue_delay=DELAY)
    assert formed(lab) == [([0, 2, 3], CloseReason.FULL)]
    lab.wait(DELAY)
    assert formed(lab) == [([1, 4], CloseReason.DELAY)]


def test_shapes_never_mix_and_a_batch_that_ends_for_lack_of_its_shape_says_so() -> None:
    lab = Lab()
    of_shapes(lab, "abcab", max_batch_size=8)
    assert formed(lab) == [
        ([0, 3], CloseReason.SHAPE),
        ([1, 4], CloseReason.SHAPE),
        ([2], CloseReason.DELAY),
    ]


def test_two_shapes_wait_for_company_side_by_side_until_the_older_ones_delay_is_over() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, max_queue_delay=DELAY)
    lab.submit(slot, [0], shape="a")
    lab.wait(DELAY / 4)
    lab.submit_each(slot, [1, 2], shape="b")
    assert formed(lab) == []
    assert lab.ask_again == START + DELAY
    lab.wait(DELAY * 3 / 4)
    assert formed(lab) == [([0], CloseReason.DELAY)]
    assert lab.ask_again == START + DELAY * 5 / 4


def test_a_full_batch_of_another_shape_need_not_wait_for_the_oldest_ones_delay() -> None:
    lab = Lab()
    of_shapes(lab, "abbb", max_batch_size=3, max_queue_delay=DELAY)
    assert formed(lab) == [([1, 2, 3], CloseReason.FULL)]
    lab.wait(DELAY)
    assert formed(lab) == [([0], CloseReason.DELAY)]


def test_the_oldest_goes_first_once_its_delay_is_over_however_full_the_others_are() -> None:
    lab = Lab()
    of_shapes(lab, "abbbbbb", max_batch_size=3, max_queue_delay=DELAY)
    lab.wait(DELAY)
    assert formed(lab)[0] == ([0], CloseReason.DELAY)


def test_a_rare_shape_under_a_flood_of_another_waits_for_one_batch_at_most() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=2)
    for number in range(100):
        slot.submit(Work(rows=[number], shape="rare" if number == 1 else "common"))
    assert lab.run_all()[:2] == [[0, 2], [1]]


def test_without_look_ahead_another_shape_ends_the_batch_at_once() -> None:
    lab = Lab()
    of_shapes(lab, "aaba", max_batch_size=8, max_queue_delay=DELAY, look_ahead=0)
    assert formed(lab) == [([0, 1], CloseReason.SHAPE), ([2], CloseReason.SHAPE)]
    assert lab.ask_again == START + DELAY


def test_look_ahead_bounds_how_many_of_other_shapes_a_batch_steps_over() -> None:
    lab = Lab()
    of_shapes(lab, "abbabba", max_batch_size=8, max_queue_delay=DELAY, look_ahead=2)
    assert formed(lab)[0] == ([0, 3], CloseReason.SHAPE)


def test_a_closing_slot_waits_for_no_company() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay=DELAY)
    lab.submit_each(slot, [0, 1])
    assert formed(lab) == []
    lab.core.close_slot(slot.state)
    assert formed(lab) == [([0, 1], CloseReason.DRAIN)]


def test_a_draining_server_waits_for_no_company() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=8, max_queue_delay=DELAY)
    lab.submit_each(slot, [0])
    lab.core.drain()
    assert formed(lab) == [([0], CloseReason.DRAIN)]


def test_one_slot_that_waits_for_company_does_not_keep_the_executor_from_another() -> None:
    lab = Lab()
    patient = lab.slot("patient", max_batch_size=8, max_queue_delay=DELAY)
    eager = lab.slot("eager", max_batch_size=8)
    lab.submit_each(patient, ["patient"])
    lab.submit_each(eager, ["eager"])
    assert lab.run_all() == [["eager"]]
    assert lab.ask_again == START + DELAY


@pytest.mark.parametrize("shorter_first", [True, False])
def test_of_several_slots_that_wait_for_company_the_first_to_be_ready_is_asked_again(
    shorter_first: bool,
) -> None:
    lab = Lab()
    delays = [DELAY, 2 * DELAY] if shorter_first else [2 * DELAY, DELAY]
    for delay in delays:
        lab.submit(lab.slot(max_batch_size=8, max_queue_delay=delay), [0])
    assert lab.take() is None
    assert lab.ask_again == START + DELAY


def test_statistics_count_batches_by_size_and_by_reason() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4, preferred_batch_sizes=(2,), max_queue_delay=DELAY)
    lab.submit_each(slot, range(5))
    formed(lab)
    lab.wait(DELAY)
    formed(lab)
    statistics = slot.statistics()
    assert statistics.close_reasons == {CloseReason.PREFERRED: 2, CloseReason.DELAY: 1}
    assert statistics.batch_sizes == {2: 2, 1: 1}
    assert statistics.batches == statistics.compute.count == 3
    assert (statistics.succeeded, statistics.rows) == (5, 5)
    assert statistics.queue.count == 5
    assert statistics.queue.seconds == pytest.approx(DELAY)
