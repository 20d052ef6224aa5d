"""How many cores a batch gets: learnt from what batches took, and from how often calls have company."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.cores import Company, CoreCosts
from mien_server.scheduling.dispatch import Dispatcher
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.state import Assignment, SlotState
from tests.scheduling_rig import Echo, FakeDevice

NOW = 100.0


def known(seconds: dict[int, float], *, rows: int = 1, at: float = NOW) -> CoreCosts:
    """Costs of which each is known for sure."""
    costs = CoreCosts()
    for cores, taken in seconds.items():
        for _ in range(4):
            costs.learn(cores, rows, "shape", taken, at)
    return costs


def choose(costs: CoreCosts, *, most: int = 2, company: float = 0.0, now: float = NOW) -> int:
    return costs.choose(most, 1, "shape", company, now)


@pytest.mark.parametrize(
    ("seconds", "company", "cores"),
    [
        ({1: 6.0, 2: 4.0}, 0.0, 2),  # alone, what is faster
        ({1: 6.0, 2: 4.0}, 1.0, 1),  # in company, what costs fewer core-seconds
        ({1: 6.0, 2: 4.0}, 0.3, 2),
        ({1: 6.0, 2: 4.0}, 0.6, 1),
        ({1: 6.0, 2: 3.0}, 0.8, 2),  # twice the cores for half the time is free
        ({1: 6.0, 2: 6.0}, 0.0, 1),  # cores that bring nothing are left to others
        ({1: 6.0, 2: 5.9}, 0.0, 1),
        ({1: 5.0, 2: 8.0}, 0.0, 1),  # or even cost something
    ],
)
def test_cores_are_chosen_by_what_they_cost(
    seconds: dict[int, float], company: float, cores: int
) -> None:
    assert choose(known(seconds), company=company) == cores


def test_the_powers_of_four_are_tried_and_as_many_as_there_are() -> None:
    costs = known({24: 5.0, 16: 4.0, 4: 9.0, 1: 20.0})
    assert choose(costs, most=24) == 16
    assert choose(costs, most=12) == 12
    assert choose(costs, most=4) == 4


def test_alone_the_most_cores_are_tried_first_and_in_company_the_fewest() -> None:
    assert choose(CoreCosts(), most=16) == 16
    assert choose(CoreCosts(), most=16, company=0.5) == 1
    assert choose(known({16: 1.0}), most=16) == 4
    assert choose(known({1: 1.0}), most=16, company=1.0) == 4


def test_a_few_batches_prove_nothing_for_they_may_have_been_the_first_after_a_rest() -> None:
    costs = known({1: 6.0})
    for _ in range(3):
        costs.learn(2, 1, "shape", 60.0, NOW)
        assert choose(costs) == 2
    costs.learn(2, 1, "shape", 4.0, NOW)
    assert choose(costs) == 2


def test_what_has_not_been_tried_of_late_is_tried_again() -> None:
    costs = known({1: 6.0, 2: 9.0})
    assert choose(costs, now=NOW + 19) == 1
    assert choose(costs, now=NOW + 21) == 2


def often(company: Company) -> bool:
    """Whether the last batch was said to have company."""
    before = company.often
    return before > 0


def test_a_call_by_itself_has_no_company_however_many_batches_it_runs() -> None:
    company = Company()
    for call in (1.0, 2.0, 3.0):
        for _ in range(3):
            company.begin(frozenset({call}), waiting=[call])
            company.end(frozenset({call}), call + 0.5)
    assert company.often == 0


@pytest.mark.parametrize(
    ("meet", "calls", "waiting"),
    [
        (lambda company: company.begin(frozenset({1.0}), []), {2.0}, []),  # runs beside it
        (lambda company: None, {2.0}, [2.5]),  # waits
        (lambda company: None, {2.0, 2.5}, []),  # shares its batch
    ],
)
def test_a_call_has_company_if_another_runs_waits_or_shares_its_batch(
    meet: Callable[[Company], None], calls: set[float], waiting: list[float]
) -> None:
    company = Company()
    meet(company)
    assert not often(company)
    company.begin(frozenset(calls), waiting)
    assert often(company)


@pytest.mark.parametrize(("ended", "has"), [(2.9, False), (3.1, True)])
def test_a_call_had_company_if_a_batch_of_another_ended_since_it_came(
    ended: float, has: bool
) -> None:
    company = Company()
    company.begin(frozenset({1.0}), [])
    company.end(frozenset({1.0}), ended)
    company.begin(frozenset({3.0}), [])
    assert often(company) == has


def test_company_comes_and_goes_with_the_calls() -> None:
    company = Company()
    for call in range(30):
        company.begin(frozenset({float(call)}), waiting=[call + 0.5])
        company.end(frozenset({float(call)}), call + 0.1)
    assert company.often > 0.9
    for call in range(100, 130):
        company.begin(frozenset({float(call)}), waiting=[])
        company.end(frozenset({float(call)}), call + 0.1)
    assert company.often < 0.1


# Closed loops of callers on a processor of two cores, on a virtual clock: how long batches take is measured
# (milliseconds a row of RetinaFace at 320 and of SFace in OpenVINO; docs/backends.md), and threads beyond
# the cores slow each other down.

DETECTOR = {1: {1: 2.8, 4: 2.5}, 2: {1: 2.0, 4: 1.4}}
EMBEDDER = {1: {1: 3.7, 4: 3.2}, 2: {1: 2.1, 4: 1.7}}
SLOW_EMBEDDER = {1: {1: 28.8, 4: 27.0}, 2: {1: 16.0, 4: 14.5}}


@dataclass
class Job:
    left: float
    threads: int
    done: Callable[[], None]


@dataclass
class Callers:
    """So many callers, each of whom asks again as soon as it is answered."""

    models: list[dict[int, dict[int, float]]]
    combine: bool
    before: float = 5.0
    """Milliseconds of decoding."""
    between: float = 0.6
    now: float = 0.0
    answered: int = 0
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(7)  # noqa: S311 - times of work, no secrets
        self.core = Dispatcher([FakeDevice(executors=2, cores=2)], max_requests=99, max_bytes=99)
        policy = BatchingPolicy(max_batch_size=16, preferred_batch_sizes=(4,))
        if not self.combine:
            policy = BatchingPolicy(max_batch_size=16, combine=False)
        self.slots = [
            self.core.open_slot(str(index), 1, policy, [PlacedInstance(Echo(), "cpu", 2)])
            for index in range(len(self.models))
        ]

    def per_second(self, callers: int, batches: int = 1500) -> float:
        """Answers a second, over so many steps of work."""
        for _ in range(callers):
            self.work(self.before, 1, self.call)
        for _ in range(batches):
            rate = min(1.0, 2 / sum(job.threads for job in self.jobs))
            first = min(self.jobs, key=lambda job: job.left)
            passed = first.left
            self.now += passed / rate
            for job in self.jobs:
                job.left -= passed
            self.jobs.remove(first)
            first.done()
        return self.answered / self.now

    def work(self, milliseconds: float, threads: int, done: Callable[[], None]) -> None:
        seconds = milliseconds * self.random.uniform(0.9, 1.1) / 1000
        self.jobs.append(Job(seconds, threads, done))

    def call(self) -> None:
        self.ask(self.now, 0)

    def ask(self, arrived: float, index: int) -> None:
        slot = self.slots[index]
        work = Work(rows=[0], passed=index, arrived=arrived)
        request = self.core.submit(slot, work, self.now, lambda _: False)
        last = index + 1 == len(self.slots)

        def answered(_: object) -> None:
            if last:
                self.answered += 1
                self.work(self.before + self.between, 1, self.call)
            else:
                self.work(self.between, 1, lambda: self.ask(arrived, index + 1))

        request.add_done_callback(answered)
        self.take()

    def take(self) -> None:
        while isinstance(assignment := self.core.take("cpu", self.now)[0], Assignment):
            self.run(assignment)

    def run(self, assignment: Assignment) -> None:
        def done() -> None:
            assignment.run.run(lambda: self.now)
            for settlement in self.core.finish(assignment, self.now):
                settlement.request.tell(settlement.outcome)
            self.take()

        cost = self.cost(assignment.slot, assignment.cores, assignment.batch.rows)
        self.work(cost, assignment.cores, done)

    def cost(self, slot: SlotState, cores: int, rows: int) -> float:
        by_rows = self.models[self.slots.index(slot)][cores]
        share = (min(rows, 4) - 1) / 3
        return rows * (by_rows[1] * (1 - share) + by_rows[4] * share)


@pytest.mark.parametrize(
    ("models", "before"),
    [([DETECTOR, EMBEDDER], 5.0), ([EMBEDDER], 0.0), ([SLOW_EMBEDDER], 0.0)],
    ids=["photos", "crops", "crops of a large model"],
)
def test_more_callers_are_never_served_worse_than_one_or_than_without_batching(
    models: list[dict[int, dict[int, float]]], before: float
) -> None:
    alone = Callers(models, combine=True, before=before).per_second(1)
    for callers in (2, 3, 4, 8):
        together = Callers(models, combine=True, before=before).per_second(callers)
        singly = Callers(models, combine=False, before=before).per_second(callers)
        assert together >= 0.99 * singly
        assert together >= 1.05 * alone


@pytest.mark.parametrize("model", [DETECTOR, EMBEDDER, SLOW_EMBEDDER])
def test_a_lone_caller_gets_all_cores_and_two_get_one_each(
    model: dict[int, dict[int, float]],
) -> None:
    both = 1000 / (0.6 + model[1][1])
    alone = 1000 / (0.6 + model[2][1])
    assert Callers([model], combine=True, before=0.0).per_second(1) >= 0.97 * alone
    assert Callers([model], combine=True, before=0.0).per_second(2) >= 0.97 * 2 * both
