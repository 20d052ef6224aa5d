"""A model's networks, loaded in this process, and slots on them under load."""

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import Computes, LoadedInstance
from mien_server.backends.openvino import Unsupported
from mien_server.backends.precision import Precision
from mien_server.engine import Engine, build_engine
from mien_server.errors import OperatorError
from mien_server.evaluation.check import Target
from mien_server.evaluation.loaded import EvaluationError
from mien_server.load.loops import CallFailed, closed_loop
from mien_server.load.shapes import steady
from mien_server.load.tally import Summary
from mien_server.repository.config.model import Backend, ModelConfig
from mien_server.repository.loading import load_version
from mien_server.repository.placement import AnyDevice, place
from mien_server.scheduling.errors import QueueFull, SchedulingError
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Slot
from mien_server.settings import Settings
from mien_server.tuning import Setting
from mien_server.tuning.candidates import Candidate, grid, others, own_candidate

_ROWS = 32
"""Different pictures, in turn."""
_WARM_UP = 0.25
"""Share of a measurement that does not count."""
_FIRST_LOADS = {4: 0.5, 16: 0.5}
"""Callers and seconds before anything is measured: the first batch of each size takes longer."""
_LONGEST_RETRY = 0.05
"""Seconds. A refused caller tries again no later than that."""

Variant = tuple[Backend, Computes]


class _SlotStage(NamedTuple):
    """A stage of a row's way through a slot: `load.tally.Stage`."""

    name: str
    milliseconds: float
    batch: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """Everything that one model's candidates run on.

    Attributes:
        candidates: all of them, the model's own settings first.
        refused: pairs of backend and precision that do not load, and why.
        devices: where the model runs.
        side: of the pictures, in pixels.
    """

    candidates: Sequence[Candidate]
    refused: Mapping[str, str]
    devices: Sequence[AnyDevice]
    side: int
    _engine: Engine
    _target: Target
    _rows: Sequence[Any]
    _instances: Mapping[Variant, Sequence[PlacedInstance]]

    def visit(self, candidate: Candidate, lengths: Mapping[int, float]) -> dict[int, Summary]:
        """Opens a slot for a candidate, measures it, and closes it.

        Args:
            candidate: one of `candidates`.
            lengths: seconds for each number of callers.
        """
        scheduler, config = self._engine.scheduler, self._target.config
        placed = [
            replace(each, count=candidate.count or each.count)
            for each in self._instances[candidate.backend, candidate.precision]
        ]
        policy = candidate.policy(config.batching)
        slot = scheduler.open_slot(config.name, self._target.version, policy, placed)
        try:
            return asyncio.run(_loads(slot, self._rows, config, lengths))
        finally:
            scheduler.close_slot(slot)


def _rows(config: ModelConfig, side: int) -> list[Any]:
    shape = (_ROWS, side, side, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return [config.role.row(picture, config.options) for picture in pictures]


async def _loads(
    slot: Slot, rows: Sequence[Any], config: ModelConfig, lengths: Mapping[int, float]
) -> dict[int, Summary]:
    shape, nbytes = config.role.shape(rows[0]), rows[0].image.nbytes

    async def call(number: int) -> Sequence[_SlotStage]:
        work = Work(rows=[rows[number % len(rows)]], shape=shape, nbytes=nbytes)
        try:
            timing = (await asyncio.wrap_future(slot.submit(work))).timing
        except QueueFull as full:
            await asyncio.sleep(min(full.retry_after, _LONGEST_RETRY))
            raise CallFailed("QUEUE_FULL") from full
        except SchedulingError as error:
            raise CallFailed(type(error).__name__.upper()) from error
        return [
            _SlotStage("slot.queue", 1e3 * timing.queue),
            _SlotStage("slot.compute", 1e3 * timing.compute, timing.batch_rows),
        ]

    found = {}
    for callers, seconds in lengths.items():
        load = await closed_loop(call, steady(callers, seconds), warm_up=_WARM_UP * seconds)
        found[callers] = load.tally.summary(load.seconds)
    return found


@contextlib.contextmanager
def load_model(
    settings: Settings, target: Target, *, side: int | None, keep: Collection[Setting]
) -> Iterator[LoadedModel]:
    """Loads a version with each pair of backend and precision that can run it. Blocking, for seconds.

    Args:
        settings: those of a server.
        target: the version.
        side: of the pictures, in pixels; None: the smallest that the model takes.
        keep: settings that no candidate changes.

    Raises:
        EvaluationError: the model takes no pictures of that side.
        OperatorError: it does not load as it is configured.
    """
    config = target.config
    side = min(config.sides) if side is None else side
    if side not in config.sides:
        known = ", ".join(map(str, config.sides))
        raise EvaluationError(f"{config.name} takes pictures of {known} pixels a side, not {side}")
    with contextlib.ExitStack() as closing:
        engine = build_engine(settings.model_copy(update={"model_control_mode": "none"}))
        closing.callback(engine.close)
        devices = [device for device, _ in place(config.instance_groups, engine.devices)]
        on_cpu = isinstance(devices[0], CpuDevice)
        instances: dict[Variant, Sequence[PlacedInstance]] = {}
        refused: dict[str, str] = {}

        def load(backend: Backend, precision: Precision) -> Variant:
            placed = _load(target, engine, closing, backend, precision)
            variant = (backend, cast(LoadedInstance, placed[0].instance).precision)
            instances.setdefault(variant, placed)
            return variant

        wanted = config.cpu_backend if on_cpu else config.backend
        try:
            first = load(wanted, config.precision)
        except Unsupported as error:
            if wanted == config.backend:
                raise
            # As a server does it.
            refused[wanted] = str(error)
            first = load(config.backend, config.precision)
        executors = devices[0].executors
        own = own_candidate(config, *first, executors)
        for backend, precision in others(config, own, keep, on_cpu=on_cpu):
            try:
                if backend not in refused:
                    load(backend, precision)
            except OperatorError as error:
                refused[f"{backend} {precision}"] = str(error)
        candidates = grid(
            own,
            list(instances),
            max_batch_size=config.batching.max_batch_size,
            executors=executors,
            keep=keep,
        )
        model = LoadedModel(
            candidates, refused, devices, side, engine, target, _rows(config, side), instances
        )
        for backend, precision in instances:
            model.visit(replace(own, backend=backend, precision=precision), _FIRST_LOADS)
        yield model


def _load(
    target: Target,
    engine: Engine,
    closing: contextlib.ExitStack,
    backend: Backend,
    precision: Precision,
) -> Sequence[PlacedInstance]:
    """Loads a version as a server does, with its golden answers compared; where it is placed."""
    groups = target.config.instance_groups
    if len(groups) == 1:
        groups = (replace(groups[0], count=0),)  # candidates use as many as they may, or fewer
    config = replace(
        target.config,
        backend=backend,
        cpu_backend=backend,
        precision=precision,
        instance_groups=groups,
    )
    loaded = load_version(
        config, target.version, target.folder, target.repository, engine.scheduler, engine.devices
    )
    closing.callback(loaded.close)
    return loaded.model.slot.instances
