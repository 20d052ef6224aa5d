"""How long a batch will take, learnt from the slot's own batches."""

from collections.abc import Hashable
from dataclasses import dataclass

_FORGET_AFTER = 10.0
_RISE = 0.2
_WEIGHT = 0.2
_HEADROOM = 1.25  # work may take so much longer than is usual,
_LATENESS = 0.002  # and its executor may wake up so many seconds late


@dataclass(slots=True)
class _Seen:
    typical: float
    fastest: float
    at: float
    confirmed: bool = False


class ComputeEstimate:
    """Seconds per batch by shape and number of rows.

    Two figures each: `typical`, a moving average, for planning ahead; and `fastest`, which falls at once
    and rises slowly, for refusing what cannot be done in time. One batch alone refuses nothing: it may
    have been the unlucky one. What no batch has confirmed for ten seconds is forgotten, so that a slow
    spell cannot make a slot refuse work for good.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, dict[int, _Seen]] = {}
        self._row_cost = 0.0
        self._row_cost_at = float("-inf")

    def learn(
        self, rows: int, shape: Hashable, seconds: float, now: float, *, units: int = 1
    ) -> None:
        """Notes that a batch took `seconds` on `units` cores (or executors of a GPU)."""
        if shape not in self._seen:
            self._forget_shapes(now)
        sizes = self._seen.setdefault(shape, {})
        seen = sizes.get(rows)
        if seen is None or now - seen.at > _FORGET_AFTER:
            sizes[rows] = _Seen(seconds, seconds, now)
        else:
            seen.typical += _WEIGHT * (seconds - seen.typical)
            rise = _RISE * (seconds - seen.fastest)
            seen.fastest = seconds if seconds < seen.fastest else seen.fastest + rise
            seen.at = now
            seen.confirmed = True
        cost = seconds * units / rows
        if now - self._row_cost_at > _FORGET_AFTER:
            self._row_cost = cost
        else:
            self._row_cost += _WEIGHT * (cost - self._row_cost)
        self._row_cost_at = now

    def typical(self, rows: int, shape: Hashable, now: float) -> float:
        """Seconds that a batch usually takes; scaled up from the nearest size known; 0 if none is."""
        sizes = self._known(shape, now)
        if not sizes:
            return 0.0
        larger = min((size for size in sizes if size >= rows), default=None)
        if larger is not None:
            return sizes[larger].typical
        nearest = max(sizes)
        return sizes[nearest].typical * rows / nearest

    def fastest(self, rows: int, shape: Hashable, now: float) -> float:
        """Seconds that a batch takes at the least, by a batch that was not larger; 0 if unknown."""
        sizes = self._known(shape, now)
        return max(
            (seen.fastest for size, seen in sizes.items() if size <= rows and seen.confirmed),
            default=0.0,
        )

    def row_cost(self, now: float) -> float:
        """Seconds of one core (or executor) that a row costs in the batches of late; 0 if unknown."""
        return self._row_cost if now - self._row_cost_at <= _FORGET_AFTER else 0.0

    def _forget_shapes(self, now: float) -> None:
        """Drops the shapes that have not come for long, since callers may choose shapes freely."""
        self._seen = {shape: self._seen[shape] for shape in self._seen if self._known(shape, now)}

    def _known(self, shape: Hashable, now: float) -> dict[int, _Seen]:
        sizes = self._seen.get(shape, {})
        return {size: seen for size, seen in sizes.items() if now - seen.at <= _FORGET_AFTER}


def with_headroom(seconds: float) -> float:
    """Seconds to allow for what usually takes `seconds`, where a deadline depends on it."""
    return seconds * _HEADROOM + _LATENESS
