"""Which slot a free executor serves: priority, progress, fair share, deadline, age."""

from collections import Counter
from typing import Any

import pytest

from mien_server.scheduling.interface import Work
from mien_server.scheduling.scheduler import Slot
from tests.scheduling_rig import FakeDevice
from tests.unit.scheduling.virtual import START, Lab, rows_of


def served(lab: Lab, *, seconds: float, batches: int, device: str = "cpu") -> list[Any]:
    """The first row of each of the next batches of one executor."""
    firsts = []
    for _ in range(batches):
        assignment = lab.taken(device)
        firsts.append(rows_of(assignment)[0])
        lab.finish(assignment, after=seconds)
    return firsts


def test_the_older_call_goes_first() -> None:
    lab = Lab()
    one, other = lab.slot("one"), lab.slot("other")
    other.submit(Work(rows=["younger"], arrived=START - 1))
    one.submit(Work(rows=["older"], arrived=START - 2))
    assert lab.run_all() == [["older"], ["younger"]]


def test_the_nearer_deadline_goes_before_the_older_call() -> None:
    lab = Lab()
    one, other, third = lab.slot("one"), lab.slot("other"), lab.slot("third")
    one.submit(Work(rows=["none"]))
    other.submit(Work(rows=["far"], deadline=START + 60))
    third.submit(Work(rows=["near"], deadline=START + 30))
    assert lab.run_all() == [["near"], ["far"], ["none"]]


def test_what_has_passed_more_slots_goes_before_new_calls_whatever_their_deadline() -> None:
    lab = Lab()
    detector, embedder = lab.slot("detector"), lab.slot("embedder")
    detector.submit(Work(rows=["new"], deadline=START + 1))
    embedder.submit(Work(rows=["detected"], passed=1))
    assert lab.run_all() == [["detected"], ["new"]]


def test_within_a_slot_what_has_passed_more_goes_first_too() -> None:
    lab = Lab()
    slot = lab.slot()
    slot.submit(Work(rows=["new"]))
    slot.submit(Work(rows=["detected"], passed=1))
    assert lab.run_all() == [["detected"], ["new"]]


def test_priority_is_measured_against_each_models_own_default() -> None:
    lab = Lab()
    plain = lab.slot("plain")
    levels = lab.slot("levels", priority_levels=3, default_priority_level=2)
    levels.submit(Work(rows=["low"], priority=3, passed=1))
    plain.submit(Work(rows=["plain"]))
    assert lab.run_all() == [["plain"], ["low"]]
    plain.submit(Work(rows=["plain"], passed=1))
    levels.submit(Work(rows=["high"], priority=1))
    assert lab.run_all() == [["high"], ["plain"]]


def flood(lab: Lab, slot: Slot, count: int = 400) -> None:
    lab.submit_each(slot, [slot.name] * count, deadline=lab.now + 1000)


def test_a_flooded_slot_does_not_starve_another_whose_calls_are_younger_and_less_pressing() -> None:
    lab = Lab()
    flooded, calm = lab.slot("flooded"), lab.slot("calm")
    flood(lab, flooded)
    served(lab, seconds=0.02, batches=20)
    lab.submit_each(calm, ["calm"] * 20)
    counts = Counter(served(lab, seconds=0.02, batches=40))
    assert counts["calm"] == pytest.approx(20, abs=3)


def test_lone_calls_wait_for_a_flood_no_longer_than_its_lead_and_the_batch_under_way() -> None:
    lab = Lab()
    flooded, calm = lab.slot("flooded"), lab.slot("calm")
    flood(lab, flooded)
    for _ in range(5):
        running = lab.taken()
        calm.submit(Work(rows=["calm"]))
        called = lab.now
        while running.slot is flooded.state:
            lab.finish(running, after=0.01)
            running = lab.taken()
        assert lab.now - called <= 0.05 + 2 * 0.01 + 1e-9
        lab.finish(running, after=0.01)


def test_shares_are_of_time_not_of_batches() -> None:
    lab = Lab()
    slow, fast = lab.slot("slow"), lab.slot("fast")
    flood(lab, slow)
    flood(lab, fast)
    spent = Counter[str]()
    for _ in range(200):
        assignment = lab.taken()
        seconds = 0.04 if assignment.slot is slow.state else 0.01
        spent[assignment.slot.name] += round(seconds * 1000)
        lab.finish(assignment, after=seconds)
    assert spent["slow"] == pytest.approx(spent["fast"], rel=0.1)


def test_three_flooded_slots_share_a_device_evenly() -> None:
    lab = Lab()
    for name in ("one", "two", "three"):
        flood(lab, lab.slot(name))
    counts = Counter(served(lab, seconds=0.02, batches=90))
    assert all(count == pytest.approx(30, abs=3) for count in counts.values())


def test_time_in_which_a_slot_asked_for_nothing_earns_no_credit() -> None:
    lab = Lab()
    busy, idle = lab.slot("busy"), lab.slot("idle")
    flood(lab, busy)
    served(lab, seconds=0.1, batches=100)
    flood(lab, idle)
    counts = Counter(served(lab, seconds=0.1, batches=20))
    assert counts["busy"] == pytest.approx(10, abs=2)


def test_lone_calls_of_a_slot_that_asked_for_nothing_earn_no_credit_either() -> None:
    lab = Lab()
    busy, idle = lab.slot("busy"), lab.slot("idle")
    flood(lab, busy)
    served(lab, seconds=0.1, batches=100)
    counts = Counter[str]()
    for _ in range(20):
        if not idle.pending:
            lab.submit(idle, ["idle"])
        counts.update(served(lab, seconds=0.1, batches=1))
    assert counts["busy"] == pytest.approx(10, abs=2)


def test_who_comes_newly_starts_with_the_least_share_of_those_that_wait() -> None:
    lab = Lab()
    slow, fast, new = lab.slot("slow"), lab.slot("fast"), lab.slot("new")
    flood(lab, slow)
    served(lab, seconds=5.0, batches=1)
    flood(lab, fast)
    assert served(lab, seconds=0.1, batches=3) == ["fast"] * 3
    lab.submit(new, ["new"])
    assert "new" in served(lab, seconds=0.1, batches=2)


def test_within_its_lead_a_slot_that_has_had_more_may_go_first_for_its_deadline() -> None:
    lab = Lab()
    ahead, behind = lab.slot("ahead"), lab.slot("behind")
    for slot in (ahead, behind):
        lab.submit_each(slot, [slot.name] * 3, deadline=START + (5 if slot is ahead else 9))
    assert served(lab, seconds=0.015, batches=3) == ["ahead", "ahead", "behind"]


def test_a_share_is_charged_for_new_work_only() -> None:
    lab = Lab()
    slot = lab.slot(max_batch_size=4)
    slot.submit(Work(rows=[0], passed=1))
    lab.finish(lab.taken(), after=1.0)
    assert slot.state.share == {"cpu": 0.0}
    slot.submit(Work(rows=[1], passed=1))
    slot.submit(Work(rows=[2, 3, 4]))
    lab.finish(lab.taken(), after=1.0)
    assert slot.state.share == {"cpu": pytest.approx(0.75)}


def test_detection_under_flood_does_not_starve_embedding_and_finishing_costs_no_share() -> None:
    lab = Lab()
    detector, embedder = lab.slot("detector"), lab.slot("embedder")
    flood(lab, detector)
    order = []
    for _ in range(40):
        assignment = lab.taken()
        order.append(assignment.slot.name)
        lab.finish(assignment, after=0.02)
        if assignment.slot is detector.state:
            embedder.submit(Work(rows=["face"], passed=1))
    assert order == ["detector", "embedder"] * 20


def test_shares_are_kept_for_each_device_so_that_a_busy_gpu_does_not_unsettle_the_processor() -> (
    None
):
    lab = Lab(FakeDevice("cpu"), FakeDevice("cuda:0", cores=0))
    graphics = lab.slot("graphics", placed=[("cuda:0", 64)])
    flood(lab, graphics)
    served(lab, seconds=1.0, batches=50, device="cuda:0")
    flooded, calm = lab.slot("flooded"), lab.slot("calm")
    flood(lab, flooded)
    flood(lab, calm)
    counts = Counter(served(lab, seconds=0.02, batches=40))
    assert counts["calm"] == pytest.approx(20, abs=3)


def test_a_slot_that_may_run_only_one_batch_at_a_time_keeps_its_turn() -> None:
    lab = Lab(FakeDevice(executors=2, cores=2))
    flooded = lab.slot("flooded")
    narrow = lab.slot("narrow", placed=[("cpu", 1)])
    flood(lab, flooded)
    flood(lab, narrow)
    running = [lab.taken(), lab.taken()]
    narrow_batches = 0
    for _ in range(60):
        done = running.pop(0)
        narrow_batches += done.slot is narrow.state
        lab.finish(done, after=0.05)
        running.append(lab.taken())
    assert narrow_batches == pytest.approx(30, abs=3)
