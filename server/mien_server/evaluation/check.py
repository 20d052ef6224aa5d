"""Runs one version against its golden file, and measures its speed and memory."""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError, gpu_count
from mien_server.backends.precision import Precision
from mien_server.evaluation.loaded import EvaluationError
from mien_server.repository import golden as golden_file
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.folders import CONFIG, find_models, version_numbers
from mien_server.repository.golden import BOUNDS, applies, read_golden
from mien_server.repository.instances import load_instance
from mien_server.repository.manifest import verify_version
from mien_server.repository.placement import AnyDevice, place
from mien_server.scheduling.interface import Instance

BATCHES = (1, 2, 4, 8, 16, 32)
_SECONDS = 0.5
_RUNS = 3
"""Each batch size runs for so many seconds, and at least so many times."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a batch of so many rows is, from pixels to results.

    Attributes:
        seconds: that one batch takes, the median of several.
    """

    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Rows that get through in a second, one batch after the other."""
        return self.rows / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a check found.

    Attributes:
        model, version: what was checked.
        device, cores: where it ran. The cores are 0 for a GPU.
        precision: what it computed in.
        cosines: to the golden file's float32 answers, lowest first. Empty if no golden file applies.
        bound: the lowest cosine that is accepted.
        problem: why there are no cosines and what to do about it, or "".
        side: of the pictures that the speed was measured with, in pixels.
        speeds: one for each batch size, smallest first.
        loaded_bytes: the memory that loading it took, the process's or the GPU's.
        running_bytes: the memory that running the batches took beyond that.
    """

    model: str
    version: int
    device: str
    cores: int
    precision: str
    cosines: tuple[float, ...]
    bound: float
    problem: str
    side: int
    speeds: tuple[Speed, ...]
    loaded_bytes: int
    running_bytes: int

    @property
    def passed(self) -> bool:
        """Whether no answer is below the bound."""
        return all(cosine >= self.bound for cosine in self.cosines)


@dataclass(frozen=True, slots=True)
class Target:
    """A version on disk, whole.

    Attributes:
        config: its model's.
        version: its number.
        folder: the version folder.
        repository: the one that it is in.
        has_golden: whether its manifest lists a golden file.
    """

    config: ModelConfig
    version: int
    folder: Path
    repository: Path
    has_golden: bool


def find_target(repositories: Sequence[Path], name: str, version: int | None) -> Target:
    """Looks up a version and verifies its files. Blocking: reads all of them.

    Args:
        name: the model's.
        version: its number, or None for the highest that the version policy asks for.

    Raises:
        EvaluationError: there is no such model or version, or the repository cannot be read.
        ConfigError: the model's config.pbtxt cannot be read.
        ManifestError: the version is damaged.
    """
    try:
        models = find_models([path.resolve() for path in repositories])
        if name not in models:
            raise EvaluationError(f"there is no model {name!r}, only {', '.join(models) or 'none'}")
        model = models[name]
        if model.problem:
            raise EvaluationError(model.problem)
        config = read_config(model.path / CONFIG)
        if not isinstance(config, ModelConfig):
            raise EvaluationError(f"{name} is an ensemble: check the models that it is made of")
        available = version_numbers(model.path)
        wanted = [v for v in config.wanted_versions(available) if v in available]
        if version is None and not wanted:
            raise EvaluationError(f"{model.path} has no version: install or import its weights")
        number = wanted[0] if version is None else version
        if number not in available:
            raise EvaluationError(f"{name} has no version {number}, only {sorted(available)}")
        folder = model.path / str(number)
        manifest = verify_version(folder, model.root, config.default_model_filename)
    except OSError as error:
        raise EvaluationError(str(error)) from error
    return Target(config, number, folder, model.root, golden_file.FILENAME in manifest.files)


def check_version(
    target: Target,
    *,
    device: str | None = None,
    precision: Precision | None = None,
    cores: int | None = None,
) -> Check:
    """Loads a version as a server would and puts it to the test. Blocking, for seconds.

    Args:
        device: "cpu" or "cuda:0", or None for the first that the configuration asks for.
        precision: what to compute in, or None for what the configuration says.
        cores: how many of the processor's to use, or None for all.

    Raises:
        LoadError: it cannot be loaded like that.
        DeviceError: there is no such device.
        ManifestError: its golden file cannot be read.
    """
    config = target.config
    place_on = _device(config, device, cores)
    place_on.begin(place_on.cores)
    before = _memory(place_on)
    instance = load_instance(config, target.folder, place_on, precision=precision)
    loaded = _memory(place_on) - before
    golden = read_golden(target.folder) if target.has_golden else None
    again = f"`mien-server models check {config.name} --make-golden` makes one"
    problem = ""
    if golden is None:
        problem = f"this version has no golden file: {again}"
    elif not applies(golden, config):
        problem = f"its golden file is for pixels prepared as {golden.input}: {again}"
    cosines: tuple[float, ...] = ()
    batch = config.batching.max_batch_size
    if golden is not None and not problem:
        cosines = tuple(np.sort(golden.cosines(instance, batch)).tolist())
    try:
        speeds = tuple(_speeds(config, instance))
        running = _memory(place_on) - before - loaded
    finally:
        instance.close()
    return Check(
        model=config.name,
        version=target.version,
        device=place_on.name,
        cores=place_on.cores,
        precision=instance.precision,
        cosines=cosines,
        bound=BOUNDS[instance.precision],
        problem=problem,
        side=min(config.sides),
        speeds=speeds,
        loaded_bytes=loaded,
        running_bytes=max(0, running),
    )


def _device(config: ModelConfig, name: str | None, cores: int | None) -> AnyDevice:
    cpu = CpuDevice(cores)
    if name == "cpu":
        return cpu
    if name is None:
        gpus = [CudaDevice(index) for index in range(gpu_count())]
        return place(config.instance_groups, [cpu, *gpus])[0][0]
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise DeviceError(f"there is no device {name!r}: give cpu, or cuda:0 for the first GPU")
    return CudaDevice(int(index or "0"))


def _speeds(config: ModelConfig, instance: Instance) -> Iterator[Speed]:
    rows = config.role.golden_rows(config.role.golden_pictures(config.options))
    for size in BATCHES:
        if size > config.batching.max_batch_size:
            return
        batch = [rows[i % len(rows)] for i in range(size)]
        _run(instance, batch)
        taken: list[float] = []
        while len(taken) < _RUNS or sum(taken) < _SECONDS:
            begun = time.perf_counter()
            _run(instance, batch)
            taken.append(time.perf_counter() - begun)
        yield Speed(size, statistics.median(taken))


def _run(instance: Instance, rows: Sequence[object]) -> None:
    instance.split(instance.compute(instance.collate(rows)), rows)


def _memory(device: AnyDevice) -> int:
    """Bytes that this process holds on a device."""
    if isinstance(device, CudaDevice):
        import torch

        return torch.cuda.memory_reserved(device.torch_device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
