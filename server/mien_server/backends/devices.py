"""The devices that batches run on: the processor and GPUs, as `scheduling.interface.Device`.

On a CPU every executor thread is its own OpenMP master, and `torch.set_num_threads` acts on the calling
thread only, so each batch can be given its own number of cores. Measured with PyTorch 2.13 on an AMD EPYC
with 2 cores: reading the number takes 0.03 µs, setting it 0.1 µs, also when it alternates.

OpenMP's waiting is best left at its default: libgomp spins briefly, and less where its threads outnumber
the cores. OMP_WAIT_POLICY=PASSIVE cost two executors of two threads each about 15 % of their rows per
core-second (SFace's shape, bf16, batch 4), GOMP_SPINCOUNT=10000 changed nothing. Eager networks never start
PyTorch's inter-op pool, so its size does not matter. `bench/cpu_threads.py` repeats the comparison.

PyTorch takes seconds to import and is imported only where a model or a GPU needs it. A server whose models
all run in OpenVINO and onnxruntime on the processor needs none.
"""

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from mien_server.errors import OperatorError

NO_PYTORCH = (
    "PyTorch is not installed, which this needs: pip install 'mien[torch]', or 'mien[gpu]' for GPUs;"
    " docs/operations.md says of which index"
)

_log = logging.getLogger(__name__)


class DeviceError(OperatorError):
    """A device that a model is configured for and that is not there. Nothing falls back to the CPU."""


class CpuDevice:
    """The processor, shared by an executor thread per core and one more, whose batch waits for a core.

    Args:
        cores: the budget that all executors share, at least 1; None: `available_cores()`.
    """

    def __init__(self, cores: int | None = None) -> None:
        if cores is not None and cores < 1:
            raise DeviceError(f"the CPU's core budget must be at least 1, not {cores}")
        self.name = "cpu"
        self.cores = available_cores() if cores is None else cores
        self.ahead = 1
        self.executors = self.cores + self.ahead
        self._batch = threading.local()

    @property
    def granted(self) -> int:
        """Cores of the batch that the calling thread runs; all of them on a thread that no batch began on."""
        cores: int = getattr(self._batch, "cores", self.cores)
        return cores

    def begin(self, cores: int) -> None:
        """Lets operators of the calling thread use `cores` threads (at least 1)."""
        self._batch.cores = cores
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "set_num_threads"):
            return  # no model of this process runs in PyTorch, or another thread just imports it
        # Asking first is not only cheaper: a thread's first question makes it take over the number that
        # any thread set last. Were it asked by the first operator, it would undo what is set here.
        if torch.get_num_threads() != cores:
            torch.set_num_threads(cores)


class CudaDevice:
    """One GPU.

    Args:
        index: as in `instance_group.gpus`, among the GPUs that CUDA_VISIBLE_DEVICES leaves.
        executors: batches that may run on it at the same time, at least 1; two let one batch be staged
            while another computes.

    Raises:
        DeviceError: there is no such GPU.
    """

    def __init__(self, index: int, executors: int = 2) -> None:
        if not 0 <= index < gpu_count():
            raise DeviceError(f"there is no cuda:{index}: {gpu_remedy()}")
        self.name = f"cuda:{index}"
        self.executors = executors
        self.cores = self.ahead = 0
        self.index = index

    @property
    def torch_device(self) -> "torch.device":
        """What PyTorch calls it."""
        import torch

        return torch.device("cuda", self.index)

    def begin(self, cores: int) -> None:  # noqa: ARG002 - a GPU's batches need no cores
        """Makes this GPU the calling thread's current one."""
        import torch

        torch.cuda.set_device(self.torch_device)


def device_names(kind: str, gpus: Sequence[int] = ()) -> list[str]:
    """The names of the devices of one `instance_group`.

    Args:
        kind: "cpu" or "gpu".
        gpus: for "gpu", the GPUs named; empty means every one there is, as in Triton.

    Raises:
        DeviceError: every GPU is asked for and there is none.
    """
    if kind == "cpu":
        return ["cpu"]
    indices = gpus or range(gpu_count())
    if not indices:
        raise DeviceError(f"instance_group asks for every GPU: {gpu_remedy()}")
    return [f"cuda:{index}" for index in indices]


def gpu_count() -> int:
    """How many GPUs PyTorch can use. It is not imported to find that there is no NVIDIA driver.

    Without PyTorch there are none; where there is a driver nevertheless, the log says so once.
    """
    if "torch" not in sys.modules:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
        if not has_pytorch():
            _say_that_gpus_are_idle()
            return 0
    import torch

    return torch.cuda.device_count()


def has_pytorch() -> bool:
    """Whether PyTorch is installed. It is not imported for that."""
    return "torch" in sys.modules or find_spec("torch") is not None


@cache
def _say_that_gpus_are_idle() -> None:
    _log.warning("there is an NVIDIA driver, and its GPUs are not used: %s", NO_PYTORCH)


def thread_counts(cores: int) -> tuple[int, ...]:
    """How many threads the compiled copies of a model have between which batches choose.

    The powers of four below the number of cores, and that itself, ascending: 24 gives 1, 4, 16, 24.
    """
    counts = [1]
    while counts[-1] * 4 < cores:
        counts.append(counts[-1] * 4)
    return (*counts, cores) if cores > 1 else (1,)


def available_cores() -> int:
    """Cores that this process may use: its CPU affinity, or its cgroup's quota where that is less.

    A quota of 2.5 cores gives 2: a third thread would only be throttled. At least 1.
    """
    cores = float(len(os.sched_getaffinity(0)))
    quota = cgroup_quota()
    return max(1, int(cores if quota is None else min(cores, quota)))


def cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Cores that the tightest CPU quota above this process allows, or None if there is none.

    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`), whichever is mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
        else:
            continue
        group = Path(path.lstrip("/"))
        quotas += [read(base / level) for level in (group, *group.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    quota, period = _words(group / "cpu.max", ["max", "100000"])
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota = int(_words(group / "cpu.cfs_quota_us", ["-1"])[0])
    period = int(_words(group / "cpu.cfs_period_us", ["100000"])[0])
    return None if quota < 0 else quota / period


def _words(path: Path, default: list[str]) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return default


def gpu_remedy() -> str:
    """What PyTorch sees where a GPU is missing, and what to do about it."""
    if not has_pytorch():
        return f"{NO_PYTORCH}. Or set kind: KIND_CPU"
    import torch

    count = torch.cuda.device_count()
    if torch.version.cuda is None:
        seen = f"torch {torch.__version__} is built without CUDA"
        fix = "install a CUDA build of torch"
    elif count == 0:
        seen = f"torch {torch.__version__} sees no GPU"
        fix = "check the NVIDIA driver, CUDA_VISIBLE_DEVICES and, in a container, --gpus"
    else:
        seen = f"torch {torch.__version__} sees " + ", ".join(f"cuda:{i}" for i in range(count))
        fix = "correct gpus"
    return f"{seen}; {fix}, or set kind: KIND_CPU"
