"""The requests that wait for one slot, in the order in which they are served."""

from bisect import insort
from collections import Counter
from collections.abc import Iterator

from mien_server.scheduling.request import Part, Request

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
