"""What the dispatcher keeps of each slot and device, what it hands out, and when requests expire."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil
from typing import NamedTuple
from weakref import ref

from mien_server.scheduling.batch_run import BatchRun
from mien_server.scheduling.batching import Batch, BatchingPolicy
from mien_server.scheduling.cores import Company, CoreCosts
from mien_server.scheduling.interface import Completion, Device, PlacedInstance
from mien_server.scheduling.queue import Request, SlotQueue
from mien_server.scheduling.statistics import ComputeEstimate, SlotStatistics

Answer = tuple[Request, Completion]


class AnswerOrder:
    """The requests of one slot whose answers have not left yet, the oldest first.

    An answer waits here until all earlier requests are settled. One thread at a time hands answers out,
    because two threads could tell their callers in either order; answers that come up in the meantime
    wait until that thread asks for them with `delivered`. Not safe for threads.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._answers: dict[Request, Completion] = {}
        self._delivering = False

    def __len__(self) -> int:
        return len(self._requests)

    def append(self, request: Request) -> None:
        """Adds the newest request."""
        self._requests.append(request)

    def settled(self, request: Request, answer: Completion | None) -> list[Answer]:
        """Notes that a request is settled, with an answer or without; returns what may leave now."""
        if answer is not None:
            self._answers[request] = answer
        return self._next()

    def delivered(self) -> list[Answer]:
        """Notes that the answers last returned have left; returns those that came up meanwhile."""
        self._delivering = False
        return self._next()

    def _next(self) -> list[Answer]:
        answers: list[Answer] = []
        if self._delivering:
            return answers
        while self._requests and self._requests[0].settled:
            first = self._requests.popleft()
            answer = self._answers.pop(first, None)
            if answer is not None:
                answers.append((first, answer))
        self._delivering = bool(answers)
        return answers


class DeviceState:
    """A device's executors and cores that are free.

    Attributes:
        idle: executors without a batch.
        free_cores: cores that no batch has been granted.
        fair_floor: the least share of the device that a slot with work waiting has had; never falls.
        company: how often calls on it have others beside them.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.idle = device.executors
        self.free_cores = device.cores + device.ahead
        self.fair_floor = 0.0
        self.company = Company()

    @property
    def sharers(self) -> int:
        """Batches among which rows that wait are divided: as many as its cores run at once; 1 on a GPU.

        A GPU is the faster a row, the more rows it has. A processor gains less by that than by having every
        core at work.
        """
        return max(1, min(self.device.executors, self.device.cores))

    @property
    def capacity(self) -> int:
        """How many units (cores, or executors of a GPU) work at the same time."""
        return self.device.cores or self.device.executors


class SlotState:
    """One version of one model: its policy, its instances, and what goes on in it.

    The dispatcher alone changes it.

    Attributes:
        queue: the requests that wait.
        estimate: how long batches take.
        costs: what they take on so many cores.
        statistics: what was done.
        running: batches under way, per placed instance.
        held: requests accepted and not yet settled.
        share: per device, seconds of a core (or executor) spent on new work, for fairness between slots.
        capacity: units (cores, or executors of a GPU) of its devices, which work at the same time.
        closing: whether it takes no new calls.
        closed: whether it takes nothing any more and is gone from the dispatcher.
        broken: why it serves no more, or "".
        deaths: executor threads that died in a row in its batches.
        order: the answers that wait for their turn; None where answers leave as they come.
    """

    def __init__(
        self,
        name: str,
        version: int,
        policy: BatchingPolicy,
        instances: Sequence[PlacedInstance],
        capacity: int,
    ) -> None:
        self.name = name
        self.version = version
        self.policy = policy
        self.instances = tuple(instances)
        self.queue = SlotQueue()
        self.estimate = ComputeEstimate()
        self.costs = CoreCosts()
        self.statistics = SlotStatistics()
        self.running = [0] * len(self.instances)
        self.held = 0
        self.share = dict.fromkeys((placed.device for placed in self.instances), 0.0)
        self.capacity = capacity
        self.closing = False
        self.closed = False
        self.broken = ""
        self.deaths = 0
        self.order = AnswerOrder() if policy.preserve_ordering else None

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def facts(self) -> dict[str, object]:
        """What lines of the log say of it."""
        return {"model": self.name, "version": self.version}

    def runs(self, device: str) -> int:
        """How many batches it may run on a device at once."""
        return sum(placed.count for placed in self.instances if placed.device == device)

    def free_runs(self, device: str) -> list[int]:
        """The indices of its instances on a device, once for each more batch that they may run now."""
        return [
            index
            for index, placed in enumerate(self.instances)
            if placed.device == device
            for _ in range(placed.count - self.running[index])
        ]

    def batches_waiting(self, device: DeviceState) -> int:
        """About how many batches the requests make that wait."""
        if not self.policy.combine:
            return len(self.queue)
        if min(device.sharers, self.runs(device.device.name)) > 1:
            return self.queue.rows
        return ceil(self.queue.rows / self.policy.usual_batch_size)


class Settlement(NamedTuple):
    """A request of a slot, and what its caller is to be told."""

    slot: SlotState
    request: Request
    outcome: Completion | Exception


@dataclass(slots=True, eq=False)
class Assignment:
    """One batch, handed to one executor.

    Attributes:
        placed: the index of the instance among those of the slot.
        run: the batch under way.
        cores: the cores granted; 0 on a GPU.
        started: when it was handed out.
        returned: whether its executor, its cores and its instance are free again.
    """

    slot: SlotState
    placed: int
    device: DeviceState
    batch: Batch
    run: BatchRun
    cores: int
    started: float
    returned: bool = False


_SLACK = 1024


class DeadlineHeap:
    """The times at which waiting requests expire, the next one first.

    It holds requests and slots weakly, and is rebuilt when most of its entries belong to requests that
    are done, so that distant deadlines of answered requests hold no memory. Not safe for threads.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, ref[Request], ref[SlotState]]] = []
        self._tick = count()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, at: float, slot: SlotState, request: Request, *, waiting: int) -> None:
        """Adds a time. `waiting` is how many requests wait anywhere, to know when to rebuild."""
        if len(self._entries) > _SLACK + 4 * waiting:
            self._entries = [entry for entry in self._entries if _live(entry[2]) is not None]
            heapq.heapify(self._entries)
        heapq.heappush(self._entries, (at, next(self._tick), ref(request), ref(slot)))

    def next(self) -> float | None:
        """The earliest time of a request that is not settled, or None."""
        while self._entries and _live(self._entries[0][2]) is None:
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else None

    def due(self, now: float) -> list[tuple[SlotState, Request]]:
        """Takes out the requests whose time has come, each with its slot."""
        due = []
        while self._entries and self._entries[0][0] <= now:
            _, _, of_request, of_slot = heapq.heappop(self._entries)
            request, slot = _live(of_request), of_slot()
            if request is not None and slot is not None:
                due.append((slot, request))
        return due


def _live(reference: "ref[Request]") -> Request | None:
    request = reference()
    return None if request is None or request.settled else request
