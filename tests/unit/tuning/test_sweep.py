"""How time is divided between candidates and which one is chosen, on a machine that is made up."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from mien_server.load.tally import Summary
from mien_server.tuning.sweep import (
    CALLERS,
    Figures,
    Measurement,
    Trial,
    callers_for,
    choose,
    closest,
    sizes_of,
    sweep,
    winner,
)


def figures(rate: float, p50: float, p99: float, *, failed: int = 0) -> Figures:
    return Figures(callers=8, rate=rate, p50_ms=p50, p99_ms=p99, failed=failed, seconds=1.0)


def summary(rate: float, p50: float, p99: float, calls: int = 100) -> Summary:
    return Summary(
        calls=calls,
        rate=rate,
        error_rate=0.0,
        p50_ms=p50,
        p95_ms=p99,
        p99_ms=p99,
        queue_ms=None,
        batch=None,
        failures={},
    )


@dataclass
class Machine:
    """Candidates are named by the answers a second that they can give; a lone call takes 10 ms.

    The clock is virtual: a measurement takes its length, and its last answers besides.
    """

    now: float = 0.0
    visits: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)

    def visit(self, peak: int, lengths: Mapping[int, float]) -> dict[int, Summary]:
        self.visits.append((peak, tuple(lengths)))
        found = {}
        for callers, seconds in lengths.items():
            rate = min(callers / 0.01, float(peak))
            self.now += seconds + callers / rate
            self.seconds[peak] = self.seconds.get(peak, 0.0) + seconds
            latency = 1e3 * callers / rate
            found[callers] = summary(rate, latency, 1.2 * latency, int(rate * seconds))
        return found

    def clock(self) -> float:
        return self.now


def test_the_highest_rate_that_meets_the_objective_is_chosen() -> None:
    slow, fast, late = figures(50, 5, 9), figures(80, 9, 10), figures(90, 9, 11)
    assert choose([slow, fast, late], 10) is fast


def test_of_rates_that_are_the_same_the_lower_median_is_chosen() -> None:
    quick, fast, slower = figures(99, 5, 9), figures(100, 8, 9), figures(97, 1, 9)
    assert choose([fast, quick, slower], 10) is quick


def test_nothing_is_chosen_that_failed_calls_or_is_late() -> None:
    assert choose([figures(100, 5, 9, failed=1), figures(100, 5, 11)], 10) is None


def test_the_closest_has_the_lowest_percentile_and_answers_all() -> None:
    near, far, failing = figures(10, 5, 20), figures(90, 5, 30), figures(90, 5, 1, failed=3)
    assert closest([far, failing, near]) is near


def test_figures_are_medians_over_the_rounds_of_the_last_rung() -> None:
    trial = Trial("a", [Measurement(1, 1, 4, 0.1, summary(999, 1, 1))])
    for number, rate in enumerate((10.0, 500.0, 12.0), start=1):
        trial.measurements.append(Measurement(2, number, 4, 1.0, summary(rate, 7, rate)))
    (found,) = trial.figures()
    assert (found.rate, found.p50_ms, found.p99_ms, found.seconds) == (12.0, 7, 12.0, 3.0)


def test_a_round_without_an_answer_is_no_good_one() -> None:
    nan = float("nan")
    trial = Trial("a", [Measurement(1, 1, 4, 0.1, summary(0, nan, nan, 0))])
    assert not trial.best(1e9).meets(1e9)


@pytest.mark.parametrize(
    ("candidates", "sizes"), [(1, [1]), (4, [4]), (5, [5, 4]), (68, [68, 16, 4]), (137, [137, 42, 13, 4])]
)  # fmt: skip
def test_each_rung_has_about_a_quarter_of_the_last(candidates: int, sizes: list[int]) -> None:
    assert sizes_of(candidates) == sizes


def test_more_callers_than_can_be_answered_in_time_are_not_measured_but_for_one_number() -> None:
    assert callers_for(0.1) == [1, 2]
    assert callers_for(5.0) == [1, 2, 4, 8]
    assert callers_for(1e6) == list(CALLERS)


def test_the_best_of_many_is_found_and_measured_for_longest() -> None:
    machine = Machine()
    candidates = [200, *range(100, 230, 2)]
    trials = sweep(candidates, machine.visit, objective_ms=100, seconds=120, clock=machine.clock)
    best, found = winner(trials, 100)
    assert best.candidate == 228
    assert found.callers == 4, "more callers would be answered no faster, and wait"
    assert max(each.callers for each in best.figures()) == 32, (
        "though 16 are the most within 100 ms"
    )
    assert all(trial.measurements for trial in trials)
    assert machine.seconds[228] > 10 * machine.seconds[100]
    assert len({each.round for each in best.measurements if each.rung == best.rung}) >= 3
    assert trials[0].rung == best.rung, "what others are compared with goes all the way"
    assert machine.now <= 121


def test_rounds_go_back_and_forth() -> None:
    machine = Machine()
    sweep([100, 101, 102], machine.visit, objective_ms=50, seconds=30, clock=machine.clock)
    order = [peak for peak, callers in machine.visits if len(callers) > 1]
    assert order[:6] == [*order[:3], *reversed(order[:3])]


def test_the_time_is_kept_and_what_it_was_too_short_for_is_told() -> None:
    machine = Machine()
    told: list[str] = []
    trials = sweep(
        list(range(50, 150)),
        machine.visit,
        objective_ms=100,
        seconds=3,
        clock=machine.clock,
        say=told.append,
    )
    assert machine.now < 3.5
    missed = sum(not trial.measurements for trial in trials)
    assert missed
    assert f"too short for {missed} candidates" in told[-1]
    best, _ = winner(trials, 100)
    assert best.measurements


def test_measurements_become_longer_when_the_machine_becomes_slower() -> None:
    machine = Machine()

    def visit(peak: int, lengths: Mapping[int, float]) -> dict[int, Summary]:
        return machine.visit(peak // 20 if machine.visits else peak, lengths)

    trials = sweep(list(range(200, 220)), visit, objective_ms=200, seconds=120, clock=machine.clock)
    best, _ = winner(trials, 200)
    assert best.rung == 2
    for each in best.measurements:
        if each.rung == 2:
            assert each.seconds >= 3 * each.callers / (best.candidate // 20)


def test_no_time_at_all_still_measures_the_settings_as_they_are() -> None:
    machine = Machine()
    trials = sweep([100, 200], machine.visit, objective_ms=50, seconds=1e-3, clock=machine.clock)
    assert winner(trials, 50)[0].candidate == 100


def test_if_nothing_meets_the_objective_the_closest_is_found() -> None:
    machine = Machine()
    peaks = list(range(50, 60))
    trials = sweep(peaks, machine.visit, objective_ms=5, seconds=60, clock=machine.clock)
    best, found = winner(trials, 5)
    assert not found.meets(5)
    assert (best.rung, found.callers) == (max(t.rung for t in trials), 1)
