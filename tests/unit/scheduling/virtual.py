"""A dispatcher whose clock is a number and whose executors are the test: no threads, no sleeping."""

from collections.abc import Collection, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mien_server.scheduling.dispatch import Assignment, Dispatcher, Settlement
from mien_server.scheduling.interface import Completion, PlacedInstance
from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.request import Request
from mien_server.scheduling.slot import Slot
from mien_server.scheduling.statistics import SlotStatistics

START = 1000.0


@dataclass
class VirtualDevice:
    """A device; the test is its executors."""

    name: str = "cpu"
    executors: int = 1
    cores: int = 1

    def begin(self, cores: int) -> None:
        """Nothing to set."""


@dataclass
class Model:
    """Answers `("answer", row)`; raises on rows in `fails` and kills its thread on rows in `kills`."""

    fails: Collection[Any] = ()
    kills: Collection[Any] = ()
    runs: list[list[Any]] = field(default_factory=list)

    def collate(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)

    def compute(self, batch: list[Any]) -> list[Any]:
        self.runs.append(batch)
        if any(row in self.kills for row in batch):
            raise SystemExit("killed")
        if any(row in self.fails for row in batch):
            raise ArithmeticError("cannot compute")
        return [("answer", row) for row in batch]

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        assert len(outputs) == len(rows)
        return outputs


class Lab:
    """Slots, devices and a clock that stands still until `wait` moves it.

    Attributes:
        now: the time.
        told: what callers were told, in the order in which they were.
        ask_again: when the last `take` without a batch wants to be asked again.
    """

    def __init__(
        self, *devices: VirtualDevice, max_requests: int = 4096, max_bytes: int = 1 << 30
    ) -> None:
        self.now = START
        self.told: list[Settlement] = []
        self.ask_again: float | None = None
        self.core = Dispatcher(
            devices or (VirtualDevice(),), max_requests=max_requests, max_bytes=max_bytes
        )

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
        slot = Slot(name, 1, BatchingPolicy(**policy), instances, self)
        self.core.slots.append(slot)
        return slot

    def accept(
        self,
        slot: Slot,
        rows: Sequence[Any],
        *,
        shape: Hashable,
        nbytes: int,
        deadline: float | None,
        timeout: float | None,
        priority: int,
        stage: int,
        arrived: float | None,
    ) -> Request:
        """`Slot.submit` ends here."""
        level = slot.policy.level(priority)
        limit = slot.policy.queue_policy(level).timeout(timeout)
        request = Request(
            slot,
            rows,
            shape=shape,
            nbytes=nbytes,
            level=level,
            stage=stage,
            deadline=deadline,
            expires=None if limit is None else self.now + limit,
            arrived=self.now if arrived is None else arrived,
            queued=self.now,
            withdraw=self._withdraw,
        )
        self.core.submit(slot, request, self.now)
        return request

    def look(self, slot: Slot) -> SlotStatistics:
        return slot.state.statistics.copy()

    def expect(self, slot: Slot, rows: int, shape: Hashable) -> float:
        return slot.state.estimate.typical(rows, shape, self.now)

    def submit_each(self, slot: Slot, rows: Collection[Any], **options: Any) -> list[Future[Any]]:
        """One request per row."""
        return [slot.submit([row], **options) for row in rows]

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
                assignment.run.run(lambda: self.now)
            except SystemExit as error:
                assignment.run.died = True
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
        """Completes futures the way the scheduler does."""
        while settled:
            for request, outcome in settled:
                if not request.running() and not request.set_running_or_notify_cancel():
                    continue
                self.told.append((request, outcome))
                if isinstance(outcome, Exception):
                    request.set_exception(outcome)
                else:
                    request.set_result(outcome)
            ordered = {
                request.slot
                for request, outcome in settled
                if request.slot.policy.preserve_ordering and isinstance(outcome, Completion)
            }
            settled = [more for slot in ordered for more in self.core.delivered(slot)]

    def assert_empty(self) -> None:
        """Nothing waits, nothing is held, and every executor and core is free."""
        assert (self.core.admission.held, self.core.admission.held_bytes) == (0, 0)
        for slot in self.core.slots:
            state = slot.state
            assert (len(state.queue), state.queue.rows, state.queue.nbytes) == (0, 0, 0)
            assert (state.held, list(state.in_order)) == (0, [])
            assert not any(state.running)
        for device in self.core.devices.values():
            assert device.idle == device.device.executors
            assert device.free_cores == device.device.cores
        assert self.core.next_expiry() is None

    def _withdraw(self, request: Request) -> bool:
        removed, settled = self.core.withdraw(request)
        self.tell(settled)
        return removed


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
