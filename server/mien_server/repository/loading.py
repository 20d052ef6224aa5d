"""Loads one version of one model: verify, load on its devices, warm up. No state, no registry."""

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mien_server.backends import pytorch
from mien_server.models.catalogue import FAMILIES
from mien_server.models.interface import DetectorRow, EmbedderRow
from mien_server.repository.config import ModelConfig, Warmup
from mien_server.repository.manifest import fingerprint, verify_version
from mien_server.repository.placement import AnyDevice, place
from mien_server.repository.versions import ReadyModel
from mien_server.scheduling.interface import Instance, PlacedInstance
from mien_server.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)


class WarmupError(RuntimeError):
    """The network loads, but does not compute what its configuration says."""


def load_version(
    config: ModelConfig,
    version: int,
    folder: Path,
    root: Path,
    scheduler: Scheduler,
    devices: Sequence[AnyDevice],
) -> ReadyModel:
    """Loads a version beside whatever serves already, and opens its slot once it is warm.

    Blocking, for seconds: call it off the event loop.

    Args:
        config: of the model.
        version: its number.
        folder: the version folder.
        root: the repository, out of which no link may lead.
        scheduler: where the slot opens.
        devices: those of the server.

    Raises:
        ManifestError, LoadError, DeviceError, WarmupError: why not; nothing is left behind.
    """
    started = time.monotonic()
    manifest = verify_version(folder, root, config.default_model_filename)
    weights = manifest.files[config.default_model_filename].sha256
    with contextlib.ExitStack() as undo:
        placed = []
        for device, count in place(config.instance_groups, devices):
            instance = pytorch.load(
                FAMILIES[config.architecture],
                folder / config.default_model_filename,
                normalisation=config.normalisation,
                options=config.options,
                precision=config.precision,
                device=device,
                sides=config.sides,
                max_batch_size=config.batching.max_batch_size,
                count=count,
            )
            undo.callback(instance.close)
            warm_up(config, version, instance)
            placed.append(PlacedInstance(instance, device.name, count))
        slot = scheduler.open_slot(config.name, version, config.batching, placed)
        undo.pop_all()
    ready = ReadyModel(
        name=config.name,
        version=version,
        fingerprint=fingerprint(weights, config.architecture, config.normalisation),
        config=config,
        slot=slot,
    )
    _log.info(
        "model %s version %d is ready after %.1f s on %s",
        *(config.name, version, time.monotonic() - started),
        ", ".join(f"{place.device} x{place.count}" for place in placed),
    )
    return ready


def warm_up(config: ModelConfig, version: int, instance: Instance) -> None:
    """Runs one row, to see that the network does what its configuration says, then the samples.

    Raises:
        WarmupError: an embedding has another size than `output` says, or is not finite.
    """
    first = Warmup("first row", batch_size=1, side=config.sides[0], random=True, count=1)
    _check(config, _run(config, instance, first)[0])
    for sample in config.warmup:
        for _ in range(sample.count):
            started = time.monotonic()
            _run(config, instance, sample)
            _log.info(
                "model %s version %d: warm-up %r, %d rows of %d px, took %.0f ms",
                *(config.name, version, sample.name, sample.batch_size, sample.side),
                1000 * (time.monotonic() - started),
            )


def _run(config: ModelConfig, instance: Instance, sample: Warmup) -> Sequence[object]:
    shape = (sample.side, sample.side, 3)
    if sample.random:
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    else:
        image = np.zeros(shape, dtype=np.uint8)
    row: DetectorRow | EmbedderRow
    if config.task == "detect":
        row = DetectorRow(image, config.options.score_threshold)
    else:
        row = EmbedderRow(image)
    rows = [row] * sample.batch_size
    return instance.split(instance.compute(instance.collate(rows)), rows)


def _check(config: ModelConfig, result: object) -> None:
    if config.task != "embed":
        return
    embedding = np.asarray(result)
    if embedding.shape != config.outputs[0].dims:
        raise WarmupError(
            f"the embedding has shape {list(embedding.shape)}, but config.pbtxt says"
            f" output.dims {list(config.outputs[0].dims)}"
        )
    if not np.isfinite(embedding).all():
        raise WarmupError("the embedding of a random image is not finite: the weights are broken")
