"""The threads that the server cannot do without: one that dies is told of, and begins anew."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

PROBATION_SECONDS = 5.0
"""For so long after a thread has died the server counts as unwell; health is looked at every second."""

_LONGEST_PAUSE = 1.0
_FIRST_PAUSE = 0.01


class Threads:
    """Starts threads that are to live until their work ends, and begins them anew when they die.

    What such a thread's code raises, of whatever kind, is a defect: it is logged with the thread's name and
    its traceback, counted, and the thread's work begins from its start. The first time at once, then after
    pauses that grow to a second, so that a thread that cannot live does not take a core. Safe for threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: set[KeptThread] = set()
        self._deaths: Counter[str] = Counter()

    def start(self, name: str, work: Callable[[], None]) -> "KeptThread":
        """Starts a thread; it ends when `work` returns."""
        kept = KeptThread(name, work, self)
        with self._lock:  # nobody takes one for lost that has not begun
            self._kept.add(kept)
            self._deaths[name] += 0
            kept.begin()
        return kept

    def unwell(self) -> dict[str, str]:
        """The threads that died within the last `PROBATION_SECONDS`, and of what.

        One that the operating system has lost, without a word of Python, begins anew here.
        """
        with self._lock:
            kept = tuple(self._kept)
        for each in kept:
            each.revive()
        return {each.name: each.trouble for each in kept if each.trouble}

    def deaths(self) -> Mapping[str, int]:
        """How often each thread has died, by name, also of those that never did."""
        with self._lock:
            return dict(self._deaths)

    def count_death(self, name: str) -> None:
        """Counts one."""
        with self._lock:
            self._deaths[name] += 1

    def forget(self, kept: "KeptThread") -> None:
        """Takes out a thread whose work has ended."""
        with self._lock:
            self._kept.discard(kept)


class KeptThread:
    """One thread of `Threads`, which makes it.

    Attributes:
        name: its name in the log, the metrics and a debugger.
    """

    def __init__(self, name: str, work: Callable[[], None], owner: Threads) -> None:
        self.name = name
        self._work = work
        self._owner = owner
        self._ended = False
        self._why = ""
        self._died_at = float("-inf")
        self._pause = 0.0
        self._thread = self._new()

    @property
    def trouble(self) -> str:
        """What it died of, if it has not lived for `PROBATION_SECONDS` since; else ""."""
        fresh = time.monotonic() - self._died_at < PROBATION_SECONDS
        return f"died of {self._why}" if fresh else ""

    def begin(self) -> None:
        """Starts it."""
        self._thread.start()

    def join(self) -> None:
        """Waits until its work has ended."""
        self._thread.join()

    def revive(self) -> None:
        """Starts it anew if it is gone though its work has not ended."""
        if self._thread.is_alive() or self._ended:
            return
        self._note_death("no error that Python knows")
        _log.critical("thread %s is gone; another takes over", self.name)
        self._thread = self._new()
        self._thread.start()

    def _new(self) -> threading.Thread:
        return threading.Thread(target=self._live, name=self.name, daemon=True)

    def _live(self) -> None:
        while not self._ended:
            try:
                self._work()
                self._ended = True
            except BaseException as error:
                self._note_death(repr(error))
                _log.critical("thread %s died; it begins anew", self.name, exc_info=error)
            else:
                break
            time.sleep(self._pause)
        self._owner.forget(self)

    def _note_death(self, why: str) -> None:
        again = bool(self.trouble)
        self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE) if again else 0.0
        self._why, self._died_at = why, time.monotonic()
        self._owner.count_death(self.name)
