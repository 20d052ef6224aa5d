"""How much of one kind of thing may be held at the same time, and how much is."""

from typing import Literal


class Budget:
    """Counts what is held and tells which limit one more would pass.

    It is not safe for threads: its owner guards it, by a lock or by staying on one event loop.

    Args:
        max_count: how many may be held, at least 1.
        max_bytes: how many bytes they may have together, at least 1.

    Attributes:
        count: how many are held.
        nbytes: how many bytes they have together.
    """

    def __init__(self, *, max_count: int, max_bytes: int) -> None:
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.count = 0
        self.nbytes = 0

    def exceeded(self, nbytes: int) -> Literal["", "count", "bytes"]:
        """The limit that one more, of `nbytes`, would pass; "" if there is room for it."""
        if self.count >= self.max_count:
            return "count"
        return "bytes" if self.nbytes + nbytes > self.max_bytes else ""

    def enter(self, nbytes: int) -> None:
        """Counts one more; `leave` must follow."""
        self.count += 1
        self.nbytes += nbytes

    def leave(self, nbytes: int) -> None:
        """Ends what `enter` counted."""
        self.count -= 1
        self.nbytes -= nbytes
