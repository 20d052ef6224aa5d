"""Which models and versions there are, which of them answer calls, and why the others do not."""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from mien_server.errors import MienError, ModelAsleep, ModelNotReady
from mien_server.models.interface import AnyRole
from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.entries import LOADING, UNLOADING, ModelEntry, Sleeper, reasons_of
from mien_server.repository.routing import (
    answers,
    choose,
    find,
    find_ensemble,
    lacks_a_model,
    look,
    problem_of,
    statuses_of,
)
from mien_server.repository.statistics import EnsembleCounter, VersionStatistics
from mien_server.repository.versions import (
    Lease,
    LoadedVersion,
    ReadyModel,
    Shadow,
    State,
    VersionStatus,
)

_log = logging.getLogger(__name__)


class Catalogue:
    """The models by name. Calls ask it which version answers them; the loader swaps versions in and out.

    One lock guards all of it. Whatever happens under the lock takes microseconds and waits for nothing:
    not for a load, not for a call, not for the scheduler. What nobody holds any more is freed by a thread
    of its own. Safe for threads.

    Args:
        draw: decides which calls go to a canary.

    Attributes:
        wake: has a model that is asleep loaded; the loader sets it.
    """

    wake: Callable[[str], Future[None]]

    def __init__(self, draw: random.Random | None = None) -> None:
        self._draw = draw or random.Random()  # noqa: S311 - it shares traffic and hides nothing
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._models: dict[str, ModelEntry] = {}

    # What calls ask.

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int = 0, *, role: AnyRole | None = None, fingerprint: str = ""
    ) -> Iterator[Lease]:
        """Holds the version that answers a call: it stays loaded until the block ends.

        Args:
            name: of the model.
            version: 0 is the highest that is ready, or what the model's traffic splitting picks.
            role: what the model must take and give; None: anything.
            fingerprint: of version 0, preferably one with it, so that a given embedding can be compared.

        Raises:
            ModelNotFound: no such model or version; the message lists those there are.
            ModelNotReady: it exists and does not serve; the message says why.
            ModelAsleep: `hold` has it loaded.
            InvalidRequest: INVALID_OPTION, the model has another role, or is an ensemble.
        """
        with self._lock:
            entry, chosen = choose(
                self._models, name, version, role, draw=self._draw, fingerprint=fingerprint
            )
            held, shadow = [chosen], None
            if not version:
                entry.counter.route(chosen.model.version)
                copied = entry.healthy().get(entry.traffic.shadow_version)
                if copied and copied is not chosen:
                    held.append(copied)
                    shadow = Shadow(copied, entry.counter)
            for each in held:
                each.hold()
            lease = Lease(chosen.model, shadow)
        try:
            yield lease
        finally:
            for each in held:
                each.release()

    @contextlib.asynccontextmanager
    async def hold(
        self, name: str, version: int = 0, *, role: AnyRole | None = None, fingerprint: str = ""
    ) -> AsyncIterator[Lease]:
        """As `lease`, but a model that is asleep is loaded, which the caller waits for.

        Whoever holds models already goes on holding them meanwhile, so that none falls asleep over another
        one. A call whose deadline passes is cancelled out of the wait; the load goes on.

        Raises:
            ModelNotFound, InvalidRequest: as `lease` says. ModelNotReady: also of a load that failed.
            Draining: the server is shutting down.
        """
        failure: MienError | None = None
        with contextlib.ExitStack() as held:
            while True:
                try:
                    lease = held.enter_context(
                        self.lease(name, version, role=role, fingerprint=fingerprint)
                    )
                    break
                except ModelAsleep:
                    if failure:
                        raise ModelNotReady(failure.message) from failure
                try:
                    await asyncio.wrap_future(self.wake(name))
                except MienError as error:
                    failure = error
            yield lease

    def in_use(self, role: AnyRole) -> dict[str, Any]:
        """The options of the models of a role that serve, or should but do not, by name.

        Those that have no weights, and those that nobody has asked for, are not in use.
        """
        with self._lock:
            return {
                name: entry.config.options
                for name, entry in self._models.items()
                if isinstance(entry.config, ModelConfig)
                and entry.config.role is role
                and (entry.serving or entry.asleep or entry.failed)
            }

    def config(
        self, name: str, version: int = 0, *, role: AnyRole | None = None, fingerprint: str = ""
    ) -> ModelConfig:
        """The configuration of what `lease` would give, though never of a canary; it may be asleep.

        Raises:
            ModelNotFound, ModelNotReady, InvalidRequest: as `lease` says.
        """
        with self._lock:
            return look(self._models, name, version, role, fingerprint=fingerprint).config

    def resolve(self, name: str, version: int = 0, *, role: AnyRole | None = None) -> ReadyModel:
        """What `lease` would give, though never a canary. Only for looking: submit nothing to it.

        Raises:
            ModelNotFound, ModelNotReady, InvalidRequest: as `lease` says.
        """
        with self._lock:
            return choose(self._models, name, version, role)[1].model

    def ensemble(self, name: str, version: int = 0) -> EnsembleConfig | None:
        """The ensemble of this name, if all of its models serve; None if the name is not an ensemble's.

        Raises:
            ModelNotFound: no such model or version. ModelNotReady: one of its models does not serve.
        """
        with self._lock:
            return find_ensemble(self._models, name, version)

    def message(self, name: str, version: int = 0) -> Any:
        """Triton's `inference.ModelConfig` of what would answer, as it was read from config.pbtxt.

        Raises:
            ModelNotFound, ModelNotReady: as `ensemble` and `resolve` say.
        """
        with self._lock:
            if find_ensemble(self._models, name, version):
                return find(self._models, name).message
            return look(self._models, name, version).message

    def statuses(self) -> list[VersionStatus]:
        """Every model and version with its state, by name and version."""
        with self._lock:
            return [
                status
                for _, entry in sorted(self._models.items())
                for status in statuses_of(self._models, entry)
            ]

    def ensemble_counter(self, name: str) -> EnsembleCounter:
        """Where to count what an ensemble does.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._lock:
            return find(self._models, name).ensemble_counter

    def statistics(self) -> list[VersionStatistics]:
        """What the READY versions have done, by name and version."""
        with self._lock:
            ready = [
                (status, entry)
                for _, entry in sorted(self._models.items())
                for status in statuses_of(self._models, entry)
                if status.state is State.READY
            ]
        # Slots answer under the scheduler's lock, which is not to be waited for under this one.
        return [entry.statistics(status) for status, entry in ready]

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
                if expected and not answers(self._models, entry):
                    found[name] = reasons_of(statuses_of(self._models, entry))
        return found

    # What the loader tells it.

    def list_models(self, names: Collection[str]) -> list[str]:
        """Takes in which models there are now.

        Returns:
            their names, and those of models that are gone, but not from memory yet.
        """
        with self._lock:
            for name in names:
                self._models.setdefault(name, ModelEntry(name))
            for name in self._models.keys() - set(names):
                entry = self._models[name]
                if not (entry.serving or entry.retired or entry.loading):
                    del self._models[name]
            return list(self._models)

    def idle(self) -> list[str]:
        """The models that are not being loaded, with those that are gone and still serve."""
        with self._lock:
            return [name for name, entry in self._models.items() if not entry.loading]

    def sleep(self) -> list[str]:
        """Gives the memory back of the models that nobody has called for as long as they may be idle.

        Returns:
            their names.
        """
        with self._lock:
            fallen = [
                (entry, entry.fall_asleep()) for entry in self._models.values() if entry.may_sleep()
            ]
        for entry, unused in fallen:
            self._retire(entry, unused)
        return [entry.name for entry, _ in fallen]

    def sleepers(self) -> list[Sleeper]:
        """How the models sleep that do when nobody calls them, by name."""
        with self._lock:
            return [
                Sleeper(name, bool(entry.asleep), entry.slept, entry.woken)
                for name, entry in sorted(self._models.items())
                if isinstance(entry.config, ModelConfig) and entry.config.idle_unload_secs
            ]

    def serving(self, name: str) -> Mapping[int, LoadedVersion]:
        """The versions of a model that calls are given, by number.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._lock:
            return find(self._models, name).serving

    @contextlib.contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Keeps a model that is being loaded in the catalogue until the block ends.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._lock:
            entry = find(self._models, name)
            entry.loading = True
        try:
            yield
        finally:
            with self._lock:
                entry.loading = False

    def begin(self, name: str, version: int) -> None:
        """Says of a version that its load has begun, until `swap` or `fail` says what came of it."""
        with self._lock:
            entry = find(self._models, name)
            entry.notes = {**entry.notes, version: LOADING}

    def swap(
        self,
        config: ModelConfig,
        message: Any,
        loaded: Mapping[int, LoadedVersion],
        failures: Mapping[int, Exception],
    ) -> None:
        """Swaps what calls are given, in one step. What they are given no more is freed once unused.

        If the load failed so far that calls without a version would get no answer, what serves, serves on
        as it is, and what was loaded in vain is freed.

        Args:
            config: of the model.
            message: Triton's message that it was read from.
            loaded: what is to serve, by version; of a version that failed, what has served before.
            failures: of the versions that did not load.
        """
        with self._lock:
            entry = find(self._models, config.name)
            unused = entry.serve(config, message, loaded, failures)
        self._retire(entry, unused)

    def swap_ensemble(self, config: EnsembleConfig, message: Any) -> str:
        """Takes an ensemble into service, unless that would end what answers now.

        Args:
            config: of the ensemble.
            message: Triton's message that it was read from.

        Returns:
            why it cannot answer yet, or "". It will as soon as its models do, without another load.
        """
        with self._lock:
            entry = find(self._models, config.name)
            problem, lacking = problem_of(self._models, config), lacks_a_model(self._models, config)
            serves_on = problem and answers(self._models, entry)
            unused: list[LoadedVersion] = []
            if not serves_on:
                unused = list(entry.serving.values())
                entry.config, entry.message, entry.serving = config, message, {}
                entry.settle(unused, {})
                entry.failed = bool(problem) and not lacking
        self._retire(entry, unused)
        if serves_on:
            self.fail(config.name, problem)
        elif problem:
            level = logging.INFO if lacking else logging.WARNING
            _log.log(level, "the ensemble cannot serve: %s", problem, extra={"model": config.name})
        return problem

    def fail(self, name: str, reason: str, *, lacking: ModelConfig | None = None) -> None:
        """Says why a load found nothing to load. What serves, serves on.

        Args:
            name: of the model.
            reason: why.
            lacking: the configuration of a model that has no weights. That is a choice and no fault,
                unless it serves, and so had some.
        """
        with self._lock:
            entry = find(self._models, name)
            choice = lacking is not None and not (entry.serving or entry.asleep)
            entry.config = entry.config or lacking
            entry.reason, entry.failed = reason, not choice
            # Older notes on what serves, and all if nothing does, are out of date.
            entry.notes = {
                number: note
                for number, note in entry.notes.items()
                if note == UNLOADING or (entry.serving and number not in entry.serving)
            }
        level = logging.INFO if choice else logging.WARNING
        _log.log(level, "the model cannot be loaded: %s", reason, extra={"model": name})

    def withdraw(self, name: str) -> None:
        """Gives a model to no more calls.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._lock:
            entry = find(self._models, name)
            unused = entry.withdraw()
        self._retire(entry, unused)

    def drained(self, timeout: float | None = None) -> bool:
        """Waits until all that was replaced or unloaded is freed; False if time ran out."""
        with self._lock:
            return self._freed.wait_for(
                lambda: not any(entry.retired for entry in self._models.values()), timeout
            )

    def _retire(self, entry: ModelEntry, versions: Iterable[LoadedVersion]) -> None:
        for version in versions:
            # Whoever holds it last may be the event loop, and freeing takes its time.
            free = threading.Thread(
                target=self._free, args=(entry, version), name="mien-unload", daemon=True
            )
            version.retire(free.start)

    def _free(self, entry: ModelEntry, version: LoadedVersion) -> None:
        facts = {"model": version.model.name, "version": version.model.version}
        try:
            version.close()
            _log.info("the model is unloaded", extra=facts)
        except BaseException:  # this thread ends anyhow, and others wait for what it has to say
            _log.exception("the model did not unload", extra=facts)
        with self._lock:
            entry.freed(version)
            self._freed.notify_all()
