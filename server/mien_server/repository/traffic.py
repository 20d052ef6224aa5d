"""How calls that name no version are shared among a model's versions: canary and shadow."""

import random
import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who answers calls that name no version. Calls that name one always get it.

    Attributes:
        canary_version: a candidate that gets a share of them; 0: none.
        canary_percent: the share, in [0, 100].
        shadow_version: a candidate that gets copies of them, and whose answers are only compared; 0: none.
    """

    canary_version: int = 0
    canary_percent: float = 0.0
    shadow_version: int = 0

    @property
    def candidates(self) -> dict[str, int]:
        """The versions named, by parameter."""
        named = {"canary_version": self.canary_version, "shadow_version": self.shadow_version}
        return {parameter: version for parameter, version in named.items() if version}

    def choose(self, ready: Collection[int], draw: random.Random | None) -> int:
        """The version that answers: the highest that is no candidate, or the canary. 0: there is none.

        A canary that is alone gets all calls. A shadow gets none, even if nothing else is ready.

        Args:
            ready: the versions that serve.
            draw: decides for the canary; None: against it.
        """
        answering = [version for version in ready if version != self.shadow_version]
        stable = max(
            (version for version in answering if version != self.canary_version), default=0
        )
        if self.canary_version not in answering:
            return stable
        drawn = draw is not None and draw.random() * 100 < self.canary_percent
        return self.canary_version if drawn or not stable else stable


@dataclass(slots=True)
class ShadowStatistics:
    """What became of the rows (canvases, crops) that a shadow version got copies of.

    Attributes:
        compared: both versions answered.
        agreed: of these, the answers were the same within the tolerance.
        failed: the shadow failed on them.
        dropped: not given to the shadow, or given up, because there was other work to do.
    """

    compared: int = 0
    agreed: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(slots=True)
class TrafficStatistics:
    """Where a model's unversioned calls went, since the server started.

    Attributes:
        routed: calls by the version that answered.
        shadows: by shadow version.
    """

    routed: Counter[int] = field(default_factory=Counter)
    shadows: dict[int, ShadowStatistics] = field(default_factory=dict)


class TrafficCounter:
    """Counts for one model. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = TrafficStatistics()

    def route(self, version: int) -> None:
        """Counts a call that `version` answers."""
        with self._lock:
            self._counts.routed[version] += 1

    def shadow(
        self, version: int, *, compared: int = 0, agreed: int = 0, failed: int = 0, dropped: int = 0
    ) -> None:
        """Counts rows of a shadow version."""
        with self._lock:
            counts = self._counts.shadows.setdefault(version, ShadowStatistics())
            counts.compared += compared
            counts.agreed += agreed
            counts.failed += failed
            counts.dropped += dropped

    def copy(self) -> TrafficStatistics:
        """An independent copy."""
        with self._lock:
            shadows = {version: replace(counts) for version, counts in self._counts.shadows.items()}
            return TrafficStatistics(Counter(self._counts.routed), shadows)
