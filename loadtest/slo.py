"""Service level objectives: what a load must show, in a TOML file, and whether it did.

    [Embed]
    p99_ms = 150        # milliseconds within which 99 of 100 right answers come
    error_rate = 0.001  # share of the calls that may fail
    rate = 40           # right answers a second, at least

One table for each call, and "all" for all of them together; of the three keys any.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mien_server.load.tally import Summary

CALLS = ("Detect", "Embed", "Verify")
ALL = "all"


@dataclass(frozen=True, slots=True)
class Objective:
    """What one kind of call must keep; None: anything will do."""

    p99_ms: float | None = None
    error_rate: float | None = None
    rate: float | None = None

    def broken(self, measured: Summary) -> list[str]:
        """Which of it the measurement breaks, in words; empty if none."""
        found = []
        # Without any right answer the percentile is NaN, and no comparison holds.
        if self.p99_ms is not None and not measured.p99_ms <= self.p99_ms:
            shown = "no answer" if math.isnan(measured.p99_ms) else f"{measured.p99_ms:.1f} ms"
            found.append(f"p99 {shown}, at most {self.p99_ms:g} ms allowed")
        if self.error_rate is not None and measured.error_rate > self.error_rate:
            found.append(
                f"error rate {measured.error_rate:.4f}, at most {self.error_rate:g} allowed"
            )
        if self.rate is not None and measured.rate < self.rate:
            found.append(f"{measured.rate:.1f} answers/s, at least {self.rate:g} wanted")
        return found


def read_objectives(path: Path) -> dict[str, Objective]:
    """The objectives of a file, by call.

    Raises:
        ValueError: it cannot be read, or says something else than the above.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := set(tables) - {*CALLS, ALL}:
        known = ", ".join((*CALLS, ALL))
        raise ValueError(f"{path}: there is no call {', '.join(sorted(unknown))}, only {known}")
    return {name: _objective(path, name, table) for name, table in tables.items()}


def _objective(path: Path, name: str, table: object) -> Objective:
    keys = ("p99_ms", "error_rate", "rate")
    if not isinstance(table, dict) or set(table) - set(keys):
        raise ValueError(f"{path}: [{name}] takes {', '.join(keys)}, not {table!r}")
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{path}: [{name}] {key} must be a number from 0 on, not {value!r}")
    return Objective(**table)


def broken_objectives(
    objectives: Mapping[str, Objective], measured: Mapping[str, Summary]
) -> list[str]:
    """What the measurements break, in words, each with the call's name; empty if all is kept.

    A call that was never made breaks its objective.
    """
    found = []
    for name, objective in objectives.items():
        summary = measured.get(name)
        reasons = ["no call was made"] if summary is None else objective.broken(summary)
        found += [f"{name}: {reason}" for reason in reasons]
    return found
