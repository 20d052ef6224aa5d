"""Devices, instances and their counts, and how batches share the processor's cores."""

from statistics import mode

import pytest

from mien_server.scheduling.interface import Work
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import Lab, answers, rows_of


def cpu(cores: int, executors: int | None = None) -> FakeDevice:
    return FakeDevice("cpu", executors=executors or cores, cores=cores)


def test_a_lone_batch_gets_all_cores() -> None:
    lab = Lab(cpu(4))
    lab.submit_each(lab.slot(), [0])
    assert lab.taken().cores == 4


def test_while_all_cores_are_granted_the_next_batch_waits_and_gathers_company() -> None:
    lab = Lab(cpu(1))
    slot = lab.slot(max_batch_size=8)
    lab.submit_each(slot, [0])
    running = lab.taken()
    lab.submit_each(slot, [1, 2])
    assert lab.take() is None
    lab.finish(running)
    assert rows_of(lab.taken()) == [1, 2]


@pytest.mark.parametrize(
    ("waiting", "grants"),
    [
        (1, [4]),
        (2, [2, 2]),
        (3, [1, 1, 2]),
        (4, [1, 1, 1, 1]),
        (9, [1, 1, 1, 1]),
    ],
)
def test_batches_that_wait_together_share_the_cores_evenly(waiting: int, grants: list[int]) -> None:
    lab = Lab(cpu(4))
    lab.submit_each(lab.slot(max_batch_size=1), range(waiting))
    running = [lab.taken() for _ in grants]
    assert [assignment.cores for assignment in running] == grants
    assert lab.take() is None


def test_the_share_foresees_batches_of_the_preferred_size() -> None:
    lab = Lab(cpu(4))
    slot = lab.slot(max_batch_size=16, preferred_batch_sizes=(4,))
    lab.submit_each(slot, range(16))
    assert [lab.taken().cores for _ in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("waiting", "batches"),
    [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (5, [2, 1, 1, 1]), (8, [2, 2, 1, 1]), (64, [4] * 4)],
)
def test_rows_that_wait_are_spread_over_the_cores(waiting: int, batches: list[int]) -> None:
    lab = Lab(cpu(4))
    lab.submit_each(lab.slot(max_batch_size=16, preferred_batch_sizes=(4,)), range(waiting))
    taken = [lab.taken() for _ in batches]
    assert [assignment.batch.rows for assignment in taken] == batches


@pytest.mark.parametrize(("split", "batches"), [(True, [4, 2, 1, 1]), (False, [7, 1])])
def test_the_rows_of_one_request_are_spread_only_if_they_may_be_split(
    split: bool, batches: list[int]
) -> None:
    lab = Lab(cpu(2))
    slot = lab.slot(max_batch_size=16, split_rows=split)
    slot.submit(Work(rows=range(7)))
    slot.submit(Work(rows=range(7, 8)))
    found = []
    while (batch := lab.take()) is not None:
        found.append(batch.batch.rows)
        lab.finish(batch)
    assert found == batches


def test_one_batch_more_than_cores_is_handed_out_ahead() -> None:
    lab = Lab(FakeDevice("cpu", executors=3, cores=2, ahead=1))
    slot = lab.slot(max_batch_size=1)
    lab.submit_each(slot, range(4))
    taken = [lab.taken() for _ in range(3)]
    assert [assignment.cores for assignment in taken] == [1, 1, 1]
    assert lab.take() is None
    for assignment in taken:
        lab.finish(assignment)
    lab.finish(lab.taken())
    lab.assert_empty()


def test_a_lone_batch_gets_no_more_cores_than_there_are() -> None:
    lab = Lab(FakeDevice("cpu", executors=3, cores=2, ahead=1))
    lab.submit_each(lab.slot(), [0])
    assert lab.taken().cores == 2


def test_the_share_foresees_a_batch_of_each_request_that_is_not_combined() -> None:
    lab = Lab(cpu(4))
    slot = lab.slot(max_batch_size=16, combine=False)
    slot.submit(Work(rows=range(8)))
    slot.submit(Work(rows=range(8, 16)))
    assert [lab.taken().cores for _ in range(2)] == [2, 2]


def test_the_work_of_other_slots_counts_for_the_share() -> None:
    lab = Lab(cpu(4))
    lab.submit_each(lab.slot("one"), ["one"])
    lab.submit_each(lab.slot("other"), ["other"])
    assert [lab.taken().cores, lab.taken().cores] == [2, 2]


def test_work_that_could_not_run_beside_it_takes_no_cores_from_a_batch() -> None:
    lab = Lab(cpu(4))
    lab.submit_each(lab.slot(placed=[("cpu", 1)]), [0, 1])
    assert lab.taken().cores == 4


def test_cores_come_back_and_go_to_the_next_batch() -> None:
    lab = Lab(cpu(4))
    slot = lab.slot()
    lab.submit_each(slot, [0, 1])
    first, second = lab.taken(), lab.taken()
    lab.finish(first)
    lab.submit_each(slot, [2])
    third = lab.taken()
    assert third.cores == 2
    lab.finish(second)
    lab.finish(third)
    lab.assert_empty()


def test_executors_beyond_the_cores_wait_and_fewer_executors_get_more_each() -> None:
    crowded = Lab(cpu(2, executors=4))
    crowded.submit_each(crowded.slot(), range(4))
    assert [crowded.taken().cores, crowded.taken().cores] == [1, 1]
    assert crowded.take() is None
    roomy = Lab(cpu(8, executors=2))
    roomy.submit_each(roomy.slot(), range(4))
    assert [roomy.taken().cores, roomy.taken().cores] == [4, 4]


def test_a_slot_runs_no_more_batches_at_once_than_its_count() -> None:
    lab = Lab(cpu(4))
    slot = lab.slot(placed=[("cpu", 2)])
    lab.submit_each(slot, range(3))
    first, second = lab.taken(), lab.taken()
    assert lab.take() is None
    lab.finish(first)
    third = lab.taken()
    assert rows_of(third) == [2]
    for running in (second, third):
        lab.finish(running)
    lab.assert_empty()


def test_rows_are_not_spread_over_cores_where_the_slot_may_run_nothing_else() -> None:
    lab = Lab(cpu(4))
    slot = lab.slot(max_batch_size=16, placed=(("cpu", 1),))
    lab.submit_each(slot, range(9))
    whole = lab.taken()
    assert (rows_of(whole), whole.cores) == (list(range(9)), 4)
    assert lab.take() is None


@pytest.mark.parametrize(("count", "grant"), [(1, 2), (2, 1)])
def test_cores_that_would_stand_idle_go_to_the_only_batch_whatever_they_cost(
    count: int, grant: int
) -> None:
    """Two cores are not twice as fast as one: in company one is granted, if the other can be put to use."""
    lab = Lab(cpu(2))
    slot = lab.slot(max_batch_size=8, placed=(("cpu", count),))
    grants = []
    for _ in range(20):
        lab.submit_each(slot, [0])
        lab.wait(0.01)
        lab.submit_each(slot, [1])
        while (running := lab.take()) is not None:
            grants.append(running.cores)
            lab.finish(running, after=1.0 if running.cores == 1 else 0.7)
    assert mode(grants[-9:]) == grant


def test_each_device_runs_the_slots_that_live_on_it_and_a_slot_on_two_is_served_by_both() -> None:
    gpus = FakeDevice("cuda:0", cores=0), FakeDevice("cuda:1", cores=0)
    lab = Lab(*gpus)
    both = lab.slot("both", placed=[("cuda:0", 1), ("cuda:1", 1)])
    second = lab.slot("second", placed=[("cuda:1", 1)])
    on_second = lab.submit_each(second, ["second"])
    on_both = lab.submit_each(both, [0, 1])
    first = lab.taken("cuda:0")
    assert rows_of(first) == [0]
    assert lab.take("cuda:0") is None
    lab.finish(first)
    last, other = lab.taken("cuda:0"), lab.taken("cuda:1")
    assert (rows_of(last), rows_of(other)) == ([1], ["second"])
    assert last.cores == other.cores == 0
    lab.finish(last)
    lab.finish(other)
    assert [answers(future) for future in on_both + on_second] == [[0], [1], ["second"]]
    lab.assert_empty()


def test_a_gpu_runs_one_batch_per_executor() -> None:
    lab = Lab(FakeDevice("cuda:0", executors=2, cores=0))
    lab.submit_each(lab.slot(placed=[("cuda:0", 4)]), range(3))
    running = [lab.taken("cuda:0"), lab.taken("cuda:0")]
    assert lab.take("cuda:0") is None
    assert [rows_of(assignment) for assignment in running] == [[0], [1]]
