"""The edges: what a slot is asked (`Work`), what it runs (`Instance`) and hands back (`Completion`)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Instance(Protocol):
    """A loaded model on a device. The scheduler calls the three steps in order, on an executor thread.

    An instance of a CPU device may be called by several executor threads at once.
    """

    def collate(self, rows: Sequence[Any]) -> Any:
        """Makes one batch of rows of equal shape: stack, pad, copy to the device (preprocess)."""
        ...

    def compute(self, batch: Any) -> Any:
        """Runs the model on the batch and waits for its outputs."""
        ...

    def split(self, outputs: Any, rows: Sequence[Any]) -> Sequence[Any]:
        """One result per row, in the order of the rows (postprocess)."""
        ...


class Device(Protocol):
    """Something that computes: the processor, or one GPU.

    Attributes:
        name: "cpu", "cuda:0".
        executors: how many threads run batches on it at the same time.
        cores: processor cores that those threads share, for "cpu"; 0 for a GPU.
        ahead: cores that may be granted beyond those, so that a core which becomes free finds its next
            batch there, and need not wait until a thread gets the interpreter and brings one.
    """

    name: str
    executors: int
    cores: int
    ahead: int

    def begin(self, cores: int) -> None:
        """Called on the executor thread before each batch, with the number of cores granted to it."""
        ...


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """An instance, the name of the device it lives on, and how many batches it may run at once."""

    instance: Instance
    device: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds, and the batch that it ran in.

    Attributes:
        batch_rows: the number of its rows.
        began: when its first step began, in the scheduler's seconds: `time.monotonic()`.
        batch: its number; no other batch of this process has it.
    """

    queue: float
    preprocess: float
    compute: float
    postprocess: float
    batch_rows: int
    # How long things took is the same whenever they happened.
    began: float = field(default=0.0, compare=False)
    batch: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A request's results, one per row, in the order of its rows."""

    results: Sequence[Any]
    timing: Timing


BACKGROUND = -1
"""`Work.passed` of work that nobody waits for: everything else of its priority goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request: one or more rows of equal shape for one slot.

    Attributes:
        rows: opaque to the scheduler; at most the policy's `max_batch_size`, unless it splits rows.
        shape: only requests of equal shape share a batch (a detector's canvas side).
        nbytes: bytes that the rows hold, counted against the admission limits.
        deadline: `time.monotonic()` seconds; the request never runs after it.
        timeout: seconds that the request may wait in the queue (Triton's `timeout`). It can only shorten
            the policy's own limit, and only if the policy allows that.
        priority: 1 is the most urgent; 0 is the model's default.
        passed: how many slots the call has passed already. Work that has passed more goes first, because
            finishing a call that has been worked on beats starting another, and from 1 on it is not
            refused for load. `BACKGROUND` is for work that nobody waits for.
        arrived: `time.monotonic()` of the call, for its age; None means now.
    """

    rows: Sequence[Any]
    shape: Hashable = None
    nbytes: int = 0
    deadline: float | None = None
    timeout: float | None = None
    priority: int = 0
    passed: int = 0
    arrived: float | None = None
