"""What the catalogue remembers of a model: what serves, what does not and why, and what is told of it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from mien_server.errors import MienError, ModelNotFound, ModelNotReady
from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.statistics import (
    EnsembleCounter,
    InferenceTotals,
    VersionStatistics,
    totals_of,
)
from mien_server.repository.thresholds import judged_by, told_with
from mien_server.repository.traffic import Traffic, TrafficCounter
from mien_server.repository.versions import LoadedVersion, State, VersionStatus


class AsleepVersion(NamedTuple):
    """What is kept of a version whose memory was given back while nobody called: `idle_unload_secs`.

    Attributes:
        config, fingerprint: as `ReadyModel` had them.
        message: as `LoadedVersion` had it.
    """

    config: ModelConfig
    fingerprint: str
    message: Any


class Sleeper(NamedTuple):
    """How a model sleeps that does when nobody calls it.

    Attributes:
        name: the model's.
        asleep: whether it is.
        slept, woken: how often it fell asleep, and was loaded again, since the server started.
    """

    name: str
    asleep: bool
    slept: int
    woken: int


AnyConfig: TypeAlias = ModelConfig | EnsembleConfig

Note: TypeAlias = tuple[State, str]
"""The state of a version that does not serve, and its reason."""

LOADING: Note = (State.LOADING, "it is being loaded")
UNLOADING: Note = (State.UNLOADING, "it takes no new calls; the last that hold it still run")
UNLOADED: Note = (State.UNAVAILABLE, "it has been unloaded")

ASLEEP = "it is asleep, since nobody has called it for {:g} s: the next call loads it"
SERVES_ON = "it serves on; loading it again failed: {}"


@dataclass(slots=True, eq=False)
class ModelEntry:
    """One model. The catalogue changes it under its lock, and replaces the mappings as a whole.

    Attributes:
        name: the model's.
        config: what it was last loaded with; of a model that has no weights, what it would be loaded with.
        message: Triton's `inference.ModelConfig` that an ensemble's `config` was read from; that of a
            model's version stands with the version.
        serving: the versions that calls are given, by number.
        notes: on versions, why they do not serve, or why the last attempt to replace them failed.
        reason: the same of the model as a whole, or "".
        failed: whether the last load failed on something that is there.
        loading: whether a load is under way.
        retired: replaced or unloaded versions that are not freed yet.
        counter: of its traffic.
        ensemble_counter: of what it does as an ensemble, if it is one.
        asleep: versions that were unloaded because nobody called them, and that the next call loads.
        slept, woken: how often that has happened.
    """

    name: str
    config: AnyConfig | None = None
    message: Any = None
    serving: Mapping[int, LoadedVersion] = field(default_factory=dict)
    notes: Mapping[int, Note] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    loading: bool = False
    retired: list[LoadedVersion] = field(default_factory=list)
    counter: TrafficCounter = field(default_factory=TrafficCounter)
    ensemble_counter: EnsembleCounter = field(default_factory=EnsembleCounter)
    asleep: Mapping[int, AsleepVersion] = field(default_factory=dict)
    slept: int = 0
    woken: int = 0

    @property
    def traffic(self) -> Traffic:
        """How unversioned calls are shared."""
        return self.config.traffic if isinstance(self.config, ModelConfig) else Traffic()

    def healthy(self) -> dict[int, LoadedVersion]:
        """The versions that answer calls."""
        return {number: v for number, v in self.serving.items() if not v.model.slot.broken}

    def may_sleep(self) -> bool:
        """Whether nobody has called it for so long that its memory is to be given back."""
        seconds = self.config.idle_unload_secs if isinstance(self.config, ModelConfig) else 0
        return (
            bool(seconds and self.serving)
            and not self.loading  # which may go on with what serves
            and len(self.healthy()) == len(self.serving)
            and all(each.idle_seconds() >= seconds for each in self.serving.values())
        )

    def fall_asleep(self) -> list[LoadedVersion]:
        """Notes that its versions are to be freed, and that the next call loads them.

        Returns:
            what is to be freed.
        """
        unused = list(self.serving.values())
        self.asleep = {
            number: AsleepVersion(each.model.config, each.model.fingerprint, each.message)
            for number, each in self.serving.items()
        }
        self.serving = {}
        self.settle(unused, {})
        self.slept += 1
        return unused

    def serve(
        self,
        config: ModelConfig,
        message: Any,
        loaded: Mapping[int, LoadedVersion],
        failures: Mapping[int, Exception],
    ) -> list[LoadedVersion]:
        """Notes what came of a load; as `Catalogue.swap`.

        Returns:
            what is to be freed.
        """
        taken = loaded.keys() - failures.keys()
        if self.serving and not (taken and config.traffic.choose(loaded, None)):
            unused = _without(loaded, self.serving)
        else:
            for number in taken:
                # Of what stays as it is, settings that need no load have changed perhaps.
                version = loaded[number]
                judged = judged_by(config, version.thresholds)
                version.model = replace(version.model, config=judged)
                version.message = told_with(message, version.thresholds)
            unused = _without(self.serving, loaded)
            if loaded:
                self.woken += bool(self.asleep)
                self.asleep = {}
            self.config, self.serving = config, dict(loaded)
        self.settle(unused, failures)
        return unused

    def withdraw(self) -> list[LoadedVersion]:
        """Notes that it has been unloaded.

        Returns:
            what is to be freed.
        """
        unused = list(self.serving.values())
        self.serving, self.asleep = {}, {}
        if isinstance(self.config, EnsembleConfig):
            self.config = self.message = None
        if self.config is None:
            self.ensemble_counter = EnsembleCounter()
        self.settle(unused, {})
        self.reason = UNLOADED[1]
        return unused

    def freed(self, version: LoadedVersion) -> None:
        """Notes that the memory of a version was given back."""
        number = version.model.version
        self.retired = [other for other in self.retired if other is not version]
        left = [other.model.version for other in self.retired]
        if self.notes.get(number) == UNLOADING and number not in left:
            notes = {n: note for n, note in self.notes.items() if n != number}
            served = number in (*self.serving, *self.asleep)
            self.notes = notes if served else {**notes, number: UNLOADED}

    def statuses(self) -> list[VersionStatus]:
        """The model's lines of the index, by version; one of version 0 where there is no version."""
        numbers = sorted({*self.serving, *self.notes, *self.asleep})
        if numbers:
            return [self._status(number) for number in numbers]
        if self.loading:
            return [VersionStatus(self.name, 0, *LOADING)]
        if self.reason:
            return [VersionStatus(self.name, 0, State.UNAVAILABLE, self.reason)]
        return [VersionStatus(self.name, 0, State.UNKNOWN, "nobody has asked for it to be loaded")]

    def statistics(self, status: VersionStatus) -> VersionStatistics:
        """What a READY version of it has done. Slots answer under the scheduler's lock."""
        model = status.model
        if model is None and isinstance(self.config, ModelConfig):  # it is asleep
            return VersionStatistics(status.name, status.version, InferenceTotals())
        if model is None:
            return VersionStatistics(status.name, status.version, self.ensemble_counter.copy())
        figures = model.slot.statistics()
        return VersionStatistics(
            status.name,
            status.version,
            totals_of(figures),
            slot=figures,
            pending=model.slot.pending,
            traffic=self.counter.copy() if model.config.traffic.candidates else None,
        )

    def settle(self, unused: Iterable[LoadedVersion], failures: Mapping[int, Exception]) -> None:
        """Notes what came of a load, and which versions serve no more and are still to be freed."""
        self.retired = [*self.retired, *unused]
        self.notes = dict.fromkeys((v.model.version for v in self.retired), UNLOADING) | {
            number: (State.UNAVAILABLE, reason_of(error)) for number, error in failures.items()
        }
        self.reason, self.failed = "", bool(failures)

    def why_not(self, version: int) -> MienError:
        """What to tell a call that no version of the model answers.

        Args:
            version: that the call named, or 0.
        """
        statuses = self.statuses()
        numbers = [status.version for status in statuses if status.version]
        if version and version not in numbers and (numbers or self.config):
            known = ", ".join(map(str, numbers)) or "none"
            return ModelNotFound(
                f"model {self.name!r} has no version {version}; its versions: {known}"
            )
        asked = [s for s in statuses if version in (0, s.version) or not s.version]
        loading = any(status.state is State.LOADING for status in statuses)
        return ModelNotReady(
            f"model {self.name!r} is not ready: {reasons_of(asked)}", lasting=not loading
        )

    def _status(self, number: int) -> VersionStatus:
        loaded = self.serving.get(number)
        state, reason = self.notes.get(number, (State.UNAVAILABLE, self.reason))
        if sleeper := self.asleep.get(number):
            if self.failed or state is State.LOADING:
                return VersionStatus(self.name, number, state, reason)
            why = ASLEEP.format(sleeper.config.idle_unload_secs)
            return VersionStatus(self.name, number, State.READY, why)
        if loaded is None:
            return VersionStatus(self.name, number, state, reason)
        if broken := loaded.model.slot.broken:
            return VersionStatus(self.name, number, State.UNAVAILABLE, broken)
        told = SERVES_ON.format(reason) if reason else ""
        if state is not State.UNAVAILABLE:
            told = ""
        return VersionStatus(self.name, number, State.READY, told, loaded.model)


def reasons_of(statuses: Collection[VersionStatus]) -> str:
    """Why none of these versions answers."""
    return "; ".join(
        f"version {status.version}: {status.reason or 'it is the shadow, and answers no calls'}"
        if status.version
        else status.reason
        for status in statuses
    )


def reason_of(error: Exception) -> str:
    """What is told of an error."""
    return str(error) or type(error).__name__


def _without(
    versions: Mapping[int, LoadedVersion], others: Mapping[int, LoadedVersion]
) -> list[LoadedVersion]:
    return [version for version in versions.values() if version not in others.values()]
