"""What the repository knows of one model: what serves, what does not, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.folders import ModelFolder, Stamp
from mien_server.repository.leases import LoadedVersion
from mien_server.repository.statistics import EnsembleCounter
from mien_server.repository.traffic import Traffic, TrafficCounter
from mien_server.repository.versions import State, VersionStatus

Note: TypeAlias = tuple[State, str]
"""The state of a version that does not serve, and its reason."""

LOADING: Note = (State.LOADING, "it is being loaded")
UNLOADING: Note = (State.UNLOADING, "it takes no new calls; the last that hold it still run")
UNLOADED: Note = (State.UNAVAILABLE, "it has been unloaded")


SERVES_ON = "it serves on; loading it again failed: {}"


@dataclass(slots=True, eq=False)
class ModelEntry:
    """One model. The repository changes it under its lock, and replaces the mappings as a whole.

    Attributes:
        name: the model's.
        folder: where it lies, as last seen.
        config: what it was last loaded with.
        serving: the versions that calls are given, by number.
        notes: on versions, why they do not serve, or why the last attempt to replace them failed.
        reason: the same of the model as a whole, or "".
        failed: whether the last load failed on something that is there.
        retired: replaced or unloaded versions that are not freed yet.
        stamp: of the files when they were last loaded.
        retry: whether the next poll loads them again though they have not changed.
        busy: whether a load is under way.
        counter: of its traffic.
        ensemble_counter: of what it does as an ensemble, if it is one.
    """

    name: str
    folder: ModelFolder
    config: ModelConfig | EnsembleConfig | None = None
    serving: Mapping[int, LoadedVersion] = field(default_factory=dict)
    notes: Mapping[int, Note] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    retired: list[LoadedVersion] = field(default_factory=list)
    stamp: Stamp | None = None
    retry: bool = False
    busy: bool = False
    counter: TrafficCounter = field(default_factory=TrafficCounter)
    ensemble_counter: EnsembleCounter = field(default_factory=EnsembleCounter)

    @property
    def traffic(self) -> Traffic:
        """How unversioned calls are shared."""
        return self.config.traffic if isinstance(self.config, ModelConfig) else Traffic()

    def healthy(self) -> dict[int, LoadedVersion]:
        """The versions that answer calls."""
        return {number: v for number, v in self.serving.items() if not v.model.slot.broken}

    def statuses(self) -> list[VersionStatus]:
        """The model's lines of the index, by version; one of version 0 where there is no version."""
        numbers = sorted({*self.serving, *self.notes})
        if numbers:
            return [self._status(number) for number in numbers]
        if self.busy:
            return [VersionStatus(self.name, 0, *LOADING)]
        if self.reason:
            return [VersionStatus(self.name, 0, State.UNAVAILABLE, self.reason)]
        return [VersionStatus(self.name, 0, State.UNKNOWN, "nobody has asked for it to be loaded")]

    def _status(self, number: int) -> VersionStatus:
        loaded = self.serving.get(number)
        state, reason = self.notes.get(number, (State.UNAVAILABLE, self.reason))
        if loaded is None:
            return VersionStatus(self.name, number, state, reason)
        if broken := loaded.model.slot.broken:
            return VersionStatus(self.name, number, State.UNAVAILABLE, broken)
        told = SERVES_ON.format(reason) if reason else ""
        if state is not State.UNAVAILABLE:
            told = ""
        return VersionStatus(self.name, number, State.READY, told, loaded.model)
