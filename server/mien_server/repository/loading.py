"""Loads one version of one model: verify, load on its devices, warm up. No state, no registry."""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mien_server.backends import memory
from mien_server.backends.weights_file import GRAPH, LoadError
from mien_server.errors import OperatorError, Unmet
from mien_server.repository.config.model import ModelConfig, Warmup
from mien_server.repository.folders import stamp_of_version
from mien_server.repository.golden import FILENAME as GOLDEN
from mien_server.repository.golden import (
    Golden,
    applies,
    check_golden,
    read_golden,
)
from mien_server.repository.instances import load_instance
from mien_server.repository.manifest import (
    Manifest,
    ManifestError,
    verify_version,
    version_fingerprint,
)
from mien_server.repository.placement import AnyDevice, place
from mien_server.repository.thresholds import judged_by, read_thresholds
from mien_server.repository.versions import LoadedVersion, ReadyModel
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.interface import Instance, PlacedInstance
from mien_server.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)


class WarmupError(OperatorError):
    """The network loads, but does not compute what its configuration says."""


def load_version(
    config: ModelConfig,
    version: int,
    folder: Path,
    root: Path,
    scheduler: Scheduler,
    devices: Sequence[AnyDevice],
    *,
    current: LoadedVersion | None = None,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> LoadedVersion:
    """Loads a version beside whatever serves already, and opens its slot once it is warm.

    Blocking, for seconds: call it off the event loop.

    Args:
        config: of the model.
        version: its number.
        folder: the version folder.
        root: the repository, out of which no link may lead.
        scheduler: where the slot opens.
        devices: those of the server.
        current: what is loaded of this version now, if anything.
        stop_if_asked: called before each step, and while files are read; ends the load with what it raises.

    Returns:
        what was loaded; or `current`, if that is what the folder still holds, with the thresholds that were
        measured since.

    Raises:
        ManifestError, LoadError, DeviceError, WarmupError, PrecisionError: why not; nothing is left
            behind.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as undo:
        with _unchanged(folder):
            manifest = verify_version(folder, root, config.default_model_filename, stop_if_asked)
            made_by = version_fingerprint(config, manifest)
            thresholds = read_thresholds(folder, root, made_by)
            if current and _still_holds(current, config, manifest):
                current.thresholds = thresholds
                return current
            _check_graph(folder, manifest)
            golden = _golden_of(folder, config) if GOLDEN in manifest.files else None
            placed = []
            for device, count in place(config.instance_groups, devices):
                stop_if_asked()
                device.begin(1)  # of one core: others answer calls meanwhile
                instance = load_instance(config, folder, device, count=count)
                undo.callback(instance.close)
                warm_up(config, version, instance, stop_if_asked)
                if golden:
                    stop_if_asked()
                    rows = config.batching.max_batch_size
                    check_golden(
                        golden, instance, rows, precision=instance.precision, device=device.name
                    )
                instance.rest()
                placed.append(PlacedInstance(instance, device.name, count))
        memory.release()
        slot = scheduler.open_slot(config.name, version, config.batching, placed)
        undo.callback(scheduler.close_slot, slot)
        close = undo.pop_all().close
    model = ReadyModel(
        name=config.name,
        version=version,
        fingerprint=made_by,
        config=judged_by(config, thresholds),
        slot=slot,
    )
    _log.info(
        "the model is ready after %.1f s on %s",
        time.monotonic() - started,
        ", ".join(f"{place.device} x{place.count}" for place in placed),
        extra={"model": config.name, "version": version},
    )
    loaded = LoadedVersion(model, manifest.files, close)
    loaded.thresholds = thresholds
    return loaded


def load_wanted(
    config: ModelConfig,
    available: Collection[int],
    serving: Mapping[int, LoadedVersion],
    load: Callable[[int], LoadedVersion],
) -> tuple[dict[int, LoadedVersion], dict[int, Exception]]:
    """Loads what a model's version policy and traffic splitting ask for.

    A version that fails does not count: `latest` then goes on to the next lower one. But of a version that
    serves already, what serves stays in its place.

    Args:
        config: of the model.
        available: the versions that have a folder.
        serving: those that serve now.
        load: loads one version.

    Returns:
        what is to serve, and what failed, by version; what served before may be in both.

    Raises:
        Draining, Unmet: as `load` does; what it loaded is freed.
    """
    loaded: dict[int, LoadedVersion] = {}
    failures: dict[int, Exception] = {}

    def fail(version: int, error: Exception) -> None:
        failures[version] = error
        if version in serving:
            loaded[version] = serving[version]

    def next_wanted() -> int | None:
        usable = [v for v in available if v in loaded or v not in failures]
        wanted = config.wanted_versions(usable)
        return next((v for v in wanted if v not in loaded and v not in failures), None)

    while (version := next_wanted()) is not None:
        if version not in available:
            fail(version, ManifestError("version_policy names it, but it has no folder"))
            continue
        try:
            loaded[version] = load(version)
        except (Draining, Unmet):
            for each in loaded.values():
                if each not in serving.values():
                    each.close()
            raise
        except Exception as error:
            if not isinstance(error, OperatorError):
                facts = {"model": config.name, "version": version}
                _log.exception("the model failed to load", extra=facts)
            _forget_frames(error)
            fail(version, error)
    for parameter, version in config.traffic.candidates.items():
        if version not in loaded and version not in failures:
            missing = (
                "version_policy does not load it" if version in available else "it has no folder"
            )
            failures[version] = ManifestError(f"{parameter} names it, but {missing}")
    return loaded, failures


def _forget_frames(error: BaseException | None) -> None:
    """Whoever keeps an error would keep the half-loaded network in the frames of it and its causes."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Refuses a folder whose files change meanwhile, which is then the reason of whatever fails.

    Raises:
        ManifestError: they changed.
    """
    before = stamp_of_version(folder)
    cause: Exception | None = None
    try:
        yield
    except (ManifestError, LoadError) as error:
        cause = error
    if stamp_of_version(folder) != before:
        what = "changed" if folder.exists() else "was removed"
        raise ManifestError(f"{folder} {what} while it was being loaded: load it again") from cause
    if cause:
        raise cause


def _still_holds(current: LoadedVersion, config: ModelConfig, manifest: Manifest) -> bool:
    model = current.model
    same = current.files == manifest.files and config.runs_like(model.config)
    return same and not model.slot.broken


def _check_graph(folder: Path, manifest: Manifest) -> None:
    """Refuses a graph that no manifest vouches for: of the weights that were here before, most likely.

    Raises:
        ManifestError: there is one.
    """
    if GRAPH not in manifest.files and (folder / GRAPH).exists():
        raise ManifestError(
            f"{folder / GRAPH} is not in the manifest: remove it, or let"
            f" `mien-server models check {folder.parent.name} --make-golden` make one for these weights"
        )


def _golden_of(folder: Path, config: ModelConfig) -> Golden | None:
    """What the answers of a version can be compared with, if there is anything."""
    golden = read_golden(folder)
    if golden and not applies(golden, config):
        _log.warning(
            "%s was made for pixels prepared as %s, and config.pbtxt now says otherwise: it is not used,"
            " `mien-server models check %s --make-golden` makes another",
            *(folder / GOLDEN, golden.input, config.name),
            extra={"model": config.name, "version": int(folder.name)},
        )
        return None
    return golden


def warm_up(
    config: ModelConfig, version: int, instance: Instance, stop_if_asked: Callable[[], None]
) -> None:
    """Runs one row, to see that the network does what its configuration says, then the samples.

    Raises:
        WarmupError: the first result is not what the role and the configuration promise.
    """
    stop_if_asked()
    first = Warmup("first row", batch_size=1, side=config.sides[0], random=True, count=1)
    (result,) = _run(config, instance, first)
    try:
        config.role.check_first(result, config.outputs)
    except ValueError as error:
        raise WarmupError(str(error)) from error
    for sample in config.warmup:
        for _ in range(sample.count):
            stop_if_asked()
            started = time.monotonic()
            _run(config, instance, sample)
            _log.info(
                "warm-up %r, %d rows of %d px, took %.0f ms",
                *(sample.name, sample.batch_size, sample.side),
                1000 * (time.monotonic() - started),
                extra={"model": config.name, "version": version},
            )


def _run(config: ModelConfig, instance: Instance, sample: Warmup) -> Sequence[object]:
    shape = (sample.side, sample.side, 3)
    if sample.random:
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    else:
        image = np.zeros(shape, dtype=np.uint8)
    rows = [config.role.row(image, config.options)] * sample.batch_size
    return instance.split(instance.compute(instance.collate(rows)), rows)
