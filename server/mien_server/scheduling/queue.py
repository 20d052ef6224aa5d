"""The requests that wait for one slot, in the order in which they are served."""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from mien_server.scheduling.interface import Completion, Timing, Work


class Request(Future[Completion]):
    """One caller's rows in a slot's queue, and the future that its caller holds.

    All times are `time.monotonic()` seconds. The dispatcher alone makes requests and writes their
    attributes.

    Args:
        work: what the caller asked for.
        level: the priority level that holds for it.
        queued: when it came in.
        expires: when its queue timeout passes.
        withdraw: takes it out of its queue for `cancel`; says whether it waited there.

    Attributes:
        rows: what to run; emptied as soon as nobody needs them any more.
        shape: requests of equal shape may share a batch.
        nbytes: bytes that the rows hold.
        level: priority level, 1 most urgent (0 where the model has no levels).
        passed: how many slots the call has passed already.
        deadline: the request is never served after it.
        expires: when the queue timeout passes; None: never.
        arrived: when the call came in.
        queued: when this request came in.
        delayed: whether its queue timeout passed and the policy says DELAY.
        taken: how many of its rows have been handed to batches.
        settled: whether its outcome is decided, though perhaps not yet delivered.
    """

    def __init__(
        self,
        work: Work,
        *,
        level: int,
        queued: float,
        expires: float | None,
        withdraw: "Callable[[Request], bool]",
    ) -> None:
        super().__init__()
        self.rows = work.rows
        self.shape = work.shape
        self.nbytes = work.nbytes
        self.level = level
        self.passed = work.passed
        self.deadline = work.deadline
        self.expires = expires
        self.arrived = queued if work.arrived is None else work.arrived
        self.queued = queued
        self.delayed = False
        self.taken = 0
        self.settled = False
        self._results: list[Any] = [None] * len(work.rows)
        self._missing = len(work.rows)
        self._withdraw = withdraw

    @property
    def waiting_rows(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self.rows) - self.taken

    def cancel(self) -> bool:
        """Takes the request out of its queue at once; False if it runs or is done."""
        withdrawn = self._withdraw(self)
        if super().cancel():
            if withdrawn:  # no executor will meet it any more: tell those in `futures.wait` here
                self.set_running_or_notify_cancel()
            return True
        if withdrawn:  # some of its rows run already, and the rest never will
            self.set_exception(CancelledError())
        return withdrawn

    def tell(self, outcome: Completion | Exception) -> None:
        """Completes the future, unless the caller has cancelled it. Runs the caller's callbacks."""
        if not self.taken and not self.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def add_results(self, start: int, results: Sequence[Any], timing: Timing) -> Completion | None:
        """Notes the results of rows `start`…; returns the completion once none is missing."""
        self._results[start : start + len(results)] = results
        self._missing -= len(results)
        # Of several batches, which may run side by side, the caller waited for the one that ends last.
        return Completion(self._results, timing) if self._missing == 0 else None

    def release(self) -> None:
        """Frees the rows."""
        self.rows = ()


class Part(NamedTuple):
    """Rows `start` to `stop` of one request, as they stand in a batch."""

    request: Request
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start


# The order of service: by priority level, then those on time before those delayed, then the calls that
# have passed more slots.
_Lane = tuple[int, bool, int]


class SlotQueue:
    """Lanes of requests; each lane is first come, first served. Removal anywhere costs O(1).

    Not safe for threads: the scheduler's lock guards it.

    Attributes:
        rows: rows that wait.
        nbytes: bytes of the requests that wait.
    """

    def __init__(self) -> None:
        self._lanes: dict[_Lane, dict[int, Request]] = {}
        self._order: list[_Lane] = []
        self._rows: Counter[_Lane] = Counter()
        self._length = 0
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        """The requests in the order of service."""
        for lane in self._order:
            yield from self._lanes[lane].values()

    def __contains__(self, request: Request) -> bool:
        return id(request) in self._lanes.get(_lane(request), ())

    def rows_ahead(self, level: int) -> int:
        """Rows that would be served before a new call of a level."""
        newest: _Lane = (level, False, 0)
        return sum(rows for lane, rows in self._rows.items() if lane <= newest)

    def length_of_level(self, level: int) -> int:
        """How many requests of one priority level wait."""
        return sum(len(lane) for key, lane in self._lanes.items() if key[0] == level)

    def head(self) -> Request | None:
        """The request that is next in the order of service."""
        return next(iter(self), None)

    def append(self, request: Request) -> None:
        """Adds a request behind its equals."""
        key = _lane(request)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = {}
            insort(self._order, key)
        lane[id(request)] = request
        self._count(request, key, +1)

    def remove(self, request: Request) -> bool:
        """Takes a request out; False if it does not wait here."""
        key = _lane(request)
        lane = self._lanes.get(key)
        if lane is None or lane.pop(id(request), None) is None:
            return False
        self._count(request, key, -1)
        if not lane:
            del self._lanes[key], self._rows[key]
            self._order.remove(key)
        return True

    def delay(self, request: Request) -> None:
        """Moves a request behind all others of its level that are on time."""
        if self.remove(request):
            request.delayed = True
            self.append(request)

    def take(self, part: Part) -> None:
        """Hands rows of a request to a batch; the request leaves once none of its rows waits."""
        request = part.request
        if part.stop == len(request.rows):
            self.remove(request)
        else:
            self._rows[_lane(request)] -= part.size
            self.rows -= part.size
        request.taken = part.stop

    def _count(self, request: Request, lane: _Lane, sign: int) -> None:
        rows = sign * request.waiting_rows
        self._length += sign
        self._rows[lane] += rows
        self.rows += rows
        self.nbytes += sign * request.nbytes


def _lane(request: Request) -> _Lane:
    return (request.level, request.delayed, -request.passed)
