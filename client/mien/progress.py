"""What a command that takes long tells: how far it is, and at the end what failed and why."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mien.bulk import Failure
from mien.client import Client
from mien.errors import MienError
from mien.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

PARTLY = 3
"""The exit status of a command that has finished, and of which some items failed."""

TOLD = 20
"""Failures that are listed at the end; the rest is counted."""


TIMEOUT = 60.0
"""Seconds that a call gets, if nobody says otherwise: photos wait for each other, and for other callers."""


def give_time(client: Client, arguments: argparse.Namespace) -> None:
    """Gives the calls of a command their `TIMEOUT`, unless its options have one."""
    if arguments.timeout is None:
        client.timeout = TIMEOUT


@contextmanager
def resumable() -> Iterator[None]:
    """Says, where the block is interrupted, that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print("mien: interrupted; the same command goes on", file=sys.stderr)
        raise


class Progress:
    """A bar on standard error with the rate and the time that is left, while that is a terminal.

    Args:
        total: items to come.
        what: their name, in the plural.
        quiet: show nothing.
    """

    def __init__(self, total: int, what: str, *, quiet: bool) -> None:
        self._total = total
        self._what = what
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._shown:
            return self
        from rich import progress  # only here: it takes as long as a call
        from rich.console import Console

        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(f"{self._what}, {{task.fields[rate]}} a second"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left{task.fields[failed]}"),
            console=Console(file=sys.stderr),
        )
        self._task = self._bar.add_task("", total=self._total, rate="-", failed="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, failed: int = 0, items: int = 1) -> None:
        """Some more are done; `failed` of all so far have failed."""
        if self._bar is None or self._task is None:
            return
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            advance=items,
            rate="-" if speed is None else f"{speed:.1f}",
            failed=f", {failed} failed" if failed else "",
        )


class Tally:
    """Counts what became of many items, and remembers which failed and why."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[dict[str, Any]] = []

    def fail(self, photo: Path, error: Failure, **more: str) -> None:
        """Notes a photo that failed, and what else is known of it."""
        reason, message = (
            (error.reason, error.message)
            if isinstance(error, MienError)
            else ("FILE_ERROR", error.strerror or str(error))
        )
        self.failed.append({**more, "photo": str(photo), "reason": reason, "message": message})

    def lines(self) -> list[str]:
        """The failures for a person, the first ones with their messages."""
        lines = [
            printable(f"  {each['photo']}: {each['message']} [{each['reason']}]")
            for each in self.failed[:TOLD]
        ]
        if len(self.failed) > TOLD:
            reasons = Counter(each["reason"] for each in self.failed[TOLD:])
            rest = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            lines.append(f"  and {len(self.failed) - TOLD} more: {rest}")
        return lines
