"""A dispatcher whose clock is a number and whose executors are the test: no threads, no sleeping."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.dispatch import Dispatcher
from mien_server.scheduling.interface import Completion, PlacedInstance, Work
from mien_server.scheduling.scheduler import Desk, Slot
from mien_server.scheduling.state import Assignment, Settlement
from tests.scheduling_rig import Echo, FakeDevice

START = 1000.0


@dataclass
class Model(Echo):
    """Raises on rows in `fails`, kills its thread on rows in `kills`, and notes each batch in `runs`."""

    fails: Collection[Any] = ()
    kills: Collection[Any] = ()
    runs: list[list[Any]] = field(default_factory=list)

    def compute(self, batch: list[Any]) -> list[Any]:
        self.runs.append(batch)
        if any(row in self.kills for row in batch):
            raise SystemExit("killed")
        if any(row in self.fails for row in batch):
            raise ArithmeticError("cannot compute")
        return super().compute(batch)


class Lab:
    """Slots, devices and a clock that stands still until `wait` moves it.

    Attributes:
        now: the time.
        told: the requests that were answered or refused, in the order in which their callers were told.
        ask_again: when the last `take` without a batch wants to be asked again.
    """

    def __init__(
        self, *devices: FakeDevice, max_requests: int = 4096, max_bytes: int = 1 << 30
    ) -> None:
        self.now = START
        self.told: list[Future[Any]] = []
        self.ask_again: float | None = None
        self.core = Dispatcher(
            devices or (FakeDevice(),), max_requests=max_requests, max_bytes=max_bytes
        )
        self.desk = Desk(self.core, clock=lambda: self.now)
        self.slots: list[Slot] = []

    def slot(
        self,
        name: str = "model",
        *,
        model: Model | None = None,
        placed: Sequence[tuple[str, int]] = (("cpu", 64),),
        **policy: Any,
    ) -> Slot:
        """Opens a slot; `placed` gives (device, count) of each instance, `policy` as BatchingPolicy."""
        model = model or Model()
        instances = [PlacedInstance(model, device, count) for device, count in placed]
        state = self.core.open_slot(name, 1, BatchingPolicy(**policy), instances)
        self.slots.append(Slot(state, self.desk))
        return self.slots[-1]

    def submit(self, slot: Slot, rows: Sequence[Any], **work: Any) -> Future[Completion]:
        """One request; `work` as Work."""
        future = slot.submit(Work(rows=rows, **work))
        future.add_done_callback(self._note)
        return future

    def submit_each(self, slot: Slot, rows: Collection[Any], **work: Any) -> list[Future[Any]]:
        """One request per row."""
        return [self.submit(slot, [row], **work) for row in rows]

    def wait(self, seconds: float) -> None:
        """Lets time pass; then the timer fires."""
        self.now += seconds
        self.tell(self.core.expire(self.now))

    def take(self, device: str = "cpu") -> Assignment | None:
        """What a free executor gets now."""
        decision, settled = self.core.take(device, self.now)
        self.tell(settled)
        if isinstance(decision, Assignment):
            return decision
        self.ask_again = decision
        return None

    def taken(self, device: str = "cpu") -> Assignment:
        """What a free executor gets now; there must be something."""
        assignment = self.take(device)
        assert assignment is not None, f"no batch, ask again at {self.ask_again}"
        return assignment

    def finish(self, assignment: Assignment, *, after: float = 0.0) -> None:
        """Runs a batch to its end, by as many executors as it kills."""
        self.now += after
        while True:
            try:
                assignment.run.run(self.desk.clock)
            except SystemExit as error:
                self.tell(self.core.died(assignment, error))
            else:
                break
        self.tell(self.core.finish(assignment, self.now))

    def run_all(self, device: str = "cpu", *, seconds: float = 0.0) -> list[list[Any]]:
        """One executor runs all that closes now; the rows of each batch."""
        batches = []
        while (assignment := self.take(device)) is not None:
            batches.append(rows_of(assignment))
            self.finish(assignment, after=seconds)
        return batches

    def tell(self, settled: Sequence[Settlement]) -> None:
        """Completes futures."""
        self.desk.deliver(settled)

    def assert_empty(self) -> None:
        """Nothing waits, nothing is held, and every executor and core is free."""
        assert (self.core.admission.budget.count, self.core.admission.budget.nbytes) == (0, 0)
        for state in self.core.slots:
            assert (len(state.queue), state.queue.rows, state.queue.nbytes) == (0, 0, 0)
            assert state.held == 0
            assert not state.order
            assert not any(state.running)
        for device in self.core.devices.values():
            assert device.idle == device.device.executors
            assert device.free_cores == device.device.cores + device.device.ahead
        assert self.core.next_expiry() is None

    def _note(self, future: Future[Any]) -> None:
        self.told.append(future)


def rows_of(assignment: Assignment) -> list[Any]:
    """The rows of a batch."""
    return [
        row for part in assignment.batch.parts for row in part.request.rows[part.start : part.stop]
    ]


def answers(future: Future[Any]) -> list[Any]:
    """The rows that a future's answers belong to, in their order."""
    completion: Completion = future.result(timeout=0)
    assert all(tag == "answer" for tag, _ in completion.results)
    return [row for _, row in completion.results]
