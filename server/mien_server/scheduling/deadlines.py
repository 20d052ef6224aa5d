"""When the next waiting request expires."""

import heapq
from itertools import count
from weakref import ref

from mien_server.scheduling.request import Request
from mien_server.scheduling.slot_state import SlotState

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
