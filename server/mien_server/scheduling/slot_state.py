"""What the dispatcher keeps of a slot."""

from collections.abc import Sequence
from math import ceil

from mien_server.scheduling.answer_order import AnswerOrder
from mien_server.scheduling.estimate import ComputeEstimate
from mien_server.scheduling.interface import PlacedInstance
from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.queue import SlotQueue
from mien_server.scheduling.statistics import SlotStatistics


class SlotState:
    """One version of one model: its policy, its instances, and what goes on in it.

    The dispatcher alone changes it.

    Attributes:
        queue: the requests that wait.
        estimate: how long batches take.
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

    def free_runs(self, device: str) -> list[int]:
        """The indices of its instances on a device, once for each more batch that they may run now."""
        return [
            index
            for index, placed in enumerate(self.instances)
            if placed.device == device
            for _ in range(placed.count - self.running[index])
        ]

    def batches_waiting(self) -> int:
        """About how many batches the requests make that wait."""
        if not self.policy.combine:
            return len(self.queue)
        return ceil(self.queue.rows / self.policy.usual_batch_size)
