"""Which version answers a call, or why none does: pure functions of the catalogue's entries.

The catalogue calls them under its lock.
"""

import random
from collections.abc import Mapping
from typing import TypeAlias

from mien_server.errors import (
    InvalidRequest,
    MienError,
    ModelAsleep,
    ModelNotFound,
    ModelNotReady,
    Reason,
)
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER, NO_LANDMARKS
from mien_server.quoting import quoted
from mien_server.repository.config.ensembles import ENSEMBLE_VERSION, EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.entries import SERVES_ON, AsleepVersion, ModelEntry
from mien_server.repository.versions import LoadedVersion, State, VersionStatus

Models: TypeAlias = Mapping[str, ModelEntry]
"""The catalogue's entries, by name."""


def find(models: Models, name: str) -> ModelEntry:
    """The model of this name.

    Raises:
        ModelNotFound: there is none; the message lists those there are.
    """
    entry = models.get(name)
    if entry is None:
        known = ", ".join(sorted(models)) or "none"
        raise ModelNotFound(f"there is no model {quoted(name)}; the models are: {known}")
    return entry


def choose(
    models: Models,
    name: str,
    version: int,
    role: AnyRole | None = None,
    *,
    draw: random.Random | None = None,
    fingerprint: str = "",
) -> tuple[ModelEntry, LoadedVersion]:
    """The model, and the version of it that answers: `Catalogue.lease` has the rules.

    Raises:
        ModelNotFound, ModelNotReady, InvalidRequest: as `Catalogue.lease` says.
    """
    entry = find(models, name)
    if isinstance(entry.config, EnsembleConfig):
        raise InvalidRequest(Reason.INVALID_OPTION, f"model {name!r} is an ensemble of models")
    if entry.config and role and entry.config.role is not role:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"model {name!r} is {entry.config.role.title}, where {role.title} is needed:"
            f" {_models_for(models, role)}",
        )
    ready = entry.healthy()
    prints = {number: loaded.model.fingerprint for number, loaded in ready.items()}
    number = _number(entry, prints, version, draw=draw, fingerprint=fingerprint)
    if number in ready:
        return entry, ready[number]
    if version in (0, *entry.asleep) and entry.asleep:
        raise ModelAsleep(f"model {name!r} is asleep")
    raise entry.why_not(version)


def look(
    models: Models, name: str, version: int, role: AnyRole | None = None, *, fingerprint: str = ""
) -> AsleepVersion:
    """What is known of the version that would answer, loaded or asleep; never a canary.

    Raises:
        ModelNotFound, ModelNotReady, InvalidRequest: as `Catalogue.lease` says.
    """
    try:
        _, loaded = choose(models, name, version, role, fingerprint=fingerprint)
    except ModelAsleep:
        entry = models[name]
        if entry.failed:
            raise entry.why_not(version) from None
        prints = {number: each.fingerprint for number, each in entry.asleep.items()}
        return entry.asleep[_number(entry, prints, version, fingerprint=fingerprint)]
    return AsleepVersion(loaded.model.config, loaded.model.fingerprint, loaded.message)


def _number(
    entry: ModelEntry,
    prints: Mapping[int, str],
    version: int,
    *,
    draw: random.Random | None = None,
    fingerprint: str = "",
) -> int:
    """Which of a model's versions, given with their fingerprints, answers; 0: none."""
    if not version and fingerprint:
        version = max((n for n, made in prints.items() if made == fingerprint), default=0)
    return version or entry.traffic.choose(prints, draw)


def find_ensemble(models: Models, name: str, version: int) -> EnsembleConfig | None:
    """The ensemble of this name; None if the name is a model's.

    Raises:
        ModelNotFound: no such model or version. ModelNotReady: one of its models does not serve.
    """
    config = find(models, name).config
    if not isinstance(config, EnsembleConfig):
        return None
    if version not in (0, ENSEMBLE_VERSION):
        raise ModelNotFound(
            f"ensemble {name!r} has no version {version}; its versions: {ENSEMBLE_VERSION}"
        )
    if problem := problem_of(models, config):
        raise ModelNotReady(f"ensemble {name!r} is not ready: {problem}")
    return config


def statuses_of(models: Models, entry: ModelEntry) -> list[VersionStatus]:
    """The lines of a model or an ensemble in the index."""
    if not isinstance(entry.config, EnsembleConfig):
        return entry.statuses()
    if problem := problem_of(models, entry.config):
        return [VersionStatus(entry.name, ENSEMBLE_VERSION, State.UNAVAILABLE, problem)]
    told = SERVES_ON.format(entry.reason) if entry.reason else ""
    return [VersionStatus(entry.name, ENSEMBLE_VERSION, State.READY, told)]


def answers(models: Models, entry: ModelEntry) -> bool:
    """Whether calls that name the model and no version are answered."""
    if isinstance(entry.config, EnsembleConfig):
        return not problem_of(models, entry.config)
    if entry.asleep and not entry.failed:
        return True
    return bool(entry.traffic.choose(entry.healthy(), None))


def problem_of(models: Models, ensemble: EnsembleConfig) -> str:
    """Why an ensemble cannot answer, or ""."""
    first, second = ensemble.detector, ensemble.embedder
    try:
        detector = look(models, first.model, first.version, DETECTOR)
        embedder = look(models, second.model, second.version, EMBEDDER)
    except MienError as error:
        return error.message
    if not detector.config.options.landmarks:
        return NO_LANDMARKS.format(first.model)
    return ensemble.misfit(embedder.config.outputs)


def lacks_a_model(models: Models, ensemble: EnsembleConfig) -> bool:
    """Whether a model of an ensemble has no weights, or nobody has asked for it: a choice, no fault."""
    steps = (models.get(step.model) for step in (ensemble.detector, ensemble.embedder))
    return any(step and not (step.serving or step.asleep or step.failed) for step in steps)


def _models_for(models: Models, role: AnyRole) -> str:
    fit = [
        name
        for name, entry in models.items()
        if isinstance(entry.config, ModelConfig) and entry.config.role is role
    ]
    return ", ".join(sorted(fit)) or "none is loaded"
