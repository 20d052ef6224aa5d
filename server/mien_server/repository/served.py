"""What calls see of the repository: which version answers, and why none does."""

import contextlib
import random
import threading
from collections.abc import Collection, Iterator
from dataclasses import replace

from mien_server.errors import InvalidRequest, MienError, ModelNotFound, ModelNotReady, Reason
from mien_server.models.interface import Task
from mien_server.quoting import quoted
from mien_server.repository.config.ensembles import ENSEMBLE_VERSION, EnsembleConfig, EnsembleStep
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.entry import SERVES_ON, ModelEntry
from mien_server.repository.leases import LoadedVersion, Shadow
from mien_server.repository.statistics import EnsembleCounter, VersionStatistics, totals_of
from mien_server.repository.versions import ReadyModel, State, VersionStatus

_KIND: dict[Task, str] = {"detect": "a detector", "embed": "an embedding model"}


class ServedModels:
    """The models by name. Safe for threads; a question takes microseconds and never waits for a load.

    Args:
        draw: decides which calls go to a canary.
    """

    def __init__(self, draw: random.Random | None = None) -> None:
        self._draw = draw or random.Random()  # noqa: S311 - it shares traffic and hides nothing
        self._lock = threading.Lock()
        self._models: dict[str, ModelEntry] = {}

    @contextlib.contextmanager
    def lease(
        self,
        name: str,
        version: int = 0,
        *,
        task: Task | None = None,
        field: str = "",
        fingerprint: str = "",
    ) -> Iterator[ReadyModel]:
        """Holds the version that answers a call: it stays loaded until the block ends.

        Args:
            name: of the model.
            version: 0 is the highest that is ready, or what the model's traffic splitting picks.
            task: what the model must be for; None: anything.
            field: the request's field that named the model, for errors.
            fingerprint: of version 0, preferably one with it, so that a given embedding can be compared.

        Raises:
            ModelNotFound: no such model or version; the message lists those there are.
            ModelNotReady: it exists and does not serve; the message says why.
            InvalidRequest: INVALID_OPTION, the model is for another task, or an ensemble.
        """
        with self._lock:
            entry, chosen = self._choose(name, version, task, field, self._draw, fingerprint)
            shadow = None
            if not version:
                entry.counter.route(chosen.model.version)
                if number := entry.traffic.shadow_version:
                    shadow = entry.healthy().get(number)
            chosen.hold()
            if shadow:
                shadow.hold()
        try:
            if shadow and shadow is not chosen:
                yield replace(chosen.model, shadow=Shadow(shadow, entry.counter))
            else:
                yield chosen.model
        finally:
            if shadow:
                shadow.release()
            chosen.release()

    def resolve(
        self, name: str, version: int = 0, *, task: Task | None = None, field: str = ""
    ) -> ReadyModel:
        """What `lease` would give, though never a canary. Only for looking: submit nothing to it.

        Raises:
            ModelNotFound, ModelNotReady, InvalidRequest: as `lease` says.
        """
        with self._lock:
            return self._choose(name, version, task, field, None)[1].model

    def ensemble(self, name: str, version: int = 0, *, field: str = "") -> EnsembleConfig | None:
        """The ensemble of this name, if all of its models serve; None if the name is not an ensemble's.

        Raises:
            ModelNotFound: no such model or version. ModelNotReady: one of its models does not serve.
        """
        with self._lock:
            entry = self._find(name, field)
            config = entry.config
            if not isinstance(config, EnsembleConfig):
                return None
            if version not in (0, ENSEMBLE_VERSION):
                raise ModelNotFound(
                    f"ensemble {name!r} has no version {version}; its versions: {ENSEMBLE_VERSION}",
                    field=field,
                )
            (status,) = self._statuses(entry)
            if status.state is not State.READY:
                raise ModelNotReady(f"ensemble {name!r} is not ready: {status.reason}", field=field)
            return config

    def statuses(self) -> list[VersionStatus]:
        """Every model and version with its state, by name and version."""
        with self._lock:
            return [
                status
                for _, entry in sorted(self._models.items())
                for status in self._statuses(entry)
            ]

    def ensemble_counter(self, name: str) -> EnsembleCounter:
        """Where to count what an ensemble does.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._lock:
            return self._find(name).ensemble_counter

    def statistics(self) -> list[VersionStatistics]:
        """What the READY versions have done, by name and version."""
        with self._lock:
            ready = [
                (status, entry)
                for _, entry in sorted(self._models.items())
                for status in self._statuses(entry)
                if status.state is State.READY
            ]
        # Slots answer under the scheduler's lock, which is not to be waited for under this one.
        return [_statistics(status, entry) for status, entry in ready]

    def unready(self, needed: Collection[str], *, strict: bool) -> dict[str, str]:
        """The models that keep the server from being ready, and why.

        Args:
            needed: models that must serve.
            strict: so must all others, but for those without weights and those that nobody asked for.
        """
        found = dict.fromkeys(needed, "there is no such model")
        with self._lock:
            for name, entry in self._models.items():
                found.pop(name, None)
                expected = name in needed or (strict and (entry.failed or entry.serving))
                if expected and not self._answers(entry):
                    found[name] = _reasons(self._statuses(entry))
        return found

    def _answers(self, entry: ModelEntry) -> bool:
        """Whether calls that name the model and no version are answered."""
        if isinstance(entry.config, EnsembleConfig):
            return not self._problem(entry.config)
        return bool(entry.traffic.choose(entry.healthy(), None))

    def _find(self, name: str, field: str = "") -> ModelEntry:
        entry = self._models.get(name)
        if entry is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(
                f"there is no model {quoted(name)}; the models are: {known}", field=field
            )
        return entry

    def _choose(
        self,
        name: str,
        version: int,
        task: Task | None,
        field: str,
        draw: random.Random | None,
        fingerprint: str = "",
    ) -> tuple[ModelEntry, LoadedVersion]:
        entry = self._find(name, field)
        if isinstance(entry.config, EnsembleConfig):
            raise InvalidRequest(
                Reason.INVALID_OPTION, f"model {name!r} is an ensemble of models", field=field
            )
        if entry.config and task and entry.config.task != task:
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"model {name!r} is {_KIND[entry.config.task]}, where {_KIND[task]} is needed:"
                f" {self._models_for(task)}",
                field=field,
            )
        ready = entry.healthy()
        number = version
        if not number and fingerprint:
            made = (n for n, v in ready.items() if v.model.fingerprint == fingerprint)
            number = max(made, default=0)
        number = number or entry.traffic.choose(ready, draw)
        if number not in ready:
            raise _why_not(entry, version, field)
        return entry, ready[number]

    def _models_for(self, task: Task) -> str:
        fit = [
            name
            for name, entry in self._models.items()
            if isinstance(entry.config, ModelConfig) and entry.config.task == task
        ]
        return ", ".join(sorted(fit)) or "none is loaded"

    def _statuses(self, entry: ModelEntry) -> list[VersionStatus]:
        if not isinstance(entry.config, EnsembleConfig):
            return entry.statuses()
        if problem := self._problem(entry.config):
            return [VersionStatus(entry.name, ENSEMBLE_VERSION, State.UNAVAILABLE, problem)]
        told = SERVES_ON.format(entry.reason) if entry.reason else ""
        return [VersionStatus(entry.name, ENSEMBLE_VERSION, State.READY, told)]

    def _problem(self, config: EnsembleConfig) -> str:
        """Why an ensemble cannot answer, or ""."""
        steps: tuple[tuple[Task, EnsembleStep], ...] = (
            ("detect", config.detector),
            ("embed", config.embedder),
        )
        for task, step in steps:
            try:
                model = self._choose(step.model, step.version, task, "", None)[1].model
            except MienError as error:
                return error.message
            if task == "embed" and (misfit := config.misfit(model.config.outputs)):
                return misfit
        return ""

    def _lacks_a_model(self, config: EnsembleConfig) -> bool:
        """Whether a model of an ensemble has no weights, or nobody has asked for it: a choice, no fault."""
        steps = (self._models.get(step.model) for step in (config.detector, config.embedder))
        return any(step and not step.serving and not step.failed for step in steps)


def _statistics(status: VersionStatus, entry: ModelEntry) -> VersionStatistics:
    model = status.model
    if model is None:
        return VersionStatistics(status.name, status.version, entry.ensemble_counter.copy())
    figures = model.slot.statistics()
    return VersionStatistics(
        status.name,
        status.version,
        totals_of(figures),
        slot=figures,
        pending=model.slot.pending,
        traffic=entry.counter.copy() if model.config.traffic.candidates else None,
    )


def _why_not(entry: ModelEntry, version: int, field: str) -> MienError:
    """What to tell a call that no version of the model answers."""
    statuses = entry.statuses()
    numbers = [status.version for status in statuses if status.version]
    if version and version not in numbers and (numbers or entry.config):
        known = ", ".join(map(str, numbers)) or "none"
        return ModelNotFound(
            f"model {entry.name!r} has no version {version}; its versions: {known}", field=field
        )
    reasons = _reasons([s for s in statuses if version in (0, s.version) or not s.version])
    loading = any(status.state is State.LOADING for status in statuses)
    return ModelNotReady(
        f"model {entry.name!r} is not ready: {reasons}", field=field, lasting=not loading
    )


def _reasons(statuses: Collection[VersionStatus]) -> str:
    """Why none of these versions answers."""
    return "; ".join(
        f"version {status.version}: {status.reason or 'it is the shadow, and answers no calls'}"
        if status.version
        else status.reason
        for status in statuses
    )
