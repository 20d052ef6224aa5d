"""Running one batch on the executor thread, and finding the guilty row when it raises."""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from mien_server.scheduling.errors import RowFailed
from mien_server.scheduling.interface import Instance, Timing

_log = logging.getLogger(__name__)
_numbers = count(1)


class BatchRun:
    """A batch under way: what ran, what came out, and where a successor has to go on.

    First all rows run together. If that raises, each row runs by itself once, and only the rows that
    raise again fail. An exception that is no `Exception` (`SystemExit`, an interpreter's last breath)
    kills the executor thread; its successor calls `run` again, which then takes the rows singly, behind
    the row that killed.

    Attributes:
        outcomes: per row its result or the exception that it failed with.
        clean: whether all rows ran together and none failed.
        isolated: whether the rows ran singly.
        died: whether an executor died with it.
    """

    def __init__(
        self,
        label: str,
        instance: Instance,
        rows: Sequence[Any],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Takes the rows of a batch.

        Args:
            label: what of, for people.
            instance: runs them.
            rows: at least one.
            facts: the same, for lines of the log.
        """
        self.outcomes: list[Any] = [None] * len(rows)
        self.clean = False
        self.isolated = False
        self.died = False
        self._label = label
        self._facts = facts
        self._instance = instance
        self._rows = rows
        self._next: int | None = None
        self._preprocess = self._compute = self._postprocess = 0.0
        self._number = next(_numbers)
        self._began: float | None = None

    def run(self, clock: Callable[[], float]) -> None:
        """Runs what has not run yet. Raises only what kills a thread."""
        if self._next is None:
            self._next = 0
            try:
                self.outcomes = self._run_rows(self._rows, clock)
            except Exception as error:
                if len(self._rows) == 1:
                    self.outcomes[0] = self._failure(error)
                    return
                _log.warning(
                    "a batch of %d rows of %s raised %r; its rows run singly",
                    len(self._rows),
                    self._label,
                    error,
                    extra=self._facts,
                )
            else:
                self.clean = True
                return
        self.isolated = True
        while self._next < len(self._rows):
            at = self._next
            self._next += 1
            try:
                self.outcomes[at] = self._run_rows(self._rows[at : at + 1], clock)[0]
            except BaseException as error:
                self.outcomes[at] = self._failure(error)
                if not isinstance(error, Exception):
                    raise

    def timing(self, queue: float) -> Timing:
        """The seconds that the three steps took, over all of the batch's attempts."""
        return Timing(
            queue=queue,
            preprocess=self._preprocess,
            compute=self._compute,
            postprocess=self._postprocess,
            batch_rows=1 if self.isolated else len(self._rows),
            began=self._began or 0.0,
            batch=self._number,
        )

    def _run_rows(self, rows: Sequence[Any], clock: Callable[[], float]) -> list[Any]:
        start = clock()
        if self._began is None:
            self._began = start
        batch = self._instance.collate(rows)
        collated = clock()
        outputs = self._instance.compute(batch)
        computed = clock()
        results = list(self._instance.split(outputs, rows))
        self._preprocess += collated - start
        self._compute += computed - collated
        self._postprocess += clock() - computed
        if len(results) != len(rows):
            raise RuntimeError(f"{len(results)} results for {len(rows)} rows")
        return results

    def _failure(self, error: BaseException) -> RowFailed:
        """What the caller is told. Not chained to the error, whose traceback holds the batch's rows."""
        incident = secrets.token_hex(6)
        facts = {"incident": incident, **(self._facts or {})}
        _log.error("%s failed on a row", self._label, exc_info=error, extra=facts)
        return RowFailed(f"{self._label} failed on this input", incident=incident)
