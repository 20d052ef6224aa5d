"""onnxruntime's sessions for a device: on a CPU several, for batches that were granted few cores or many.

A session owns the threads that run it, and a batch cannot ask it for fewer. One session with a thread for
each core would let every batch use all of them, whatever it was granted, at the cost of the batches beside
it. So there is a session of one thread, run by the executor thread itself, one each of 4, 16, 64, … and one
of all cores; a batch takes the largest that its grant allows. Each has a copy of the weights, which is why
there are not more. docs/backends.md has the measurements.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import onnxruntime

from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError, thread_counts
from mien_server.backends.weights_file import LoadError
from mien_server.models.interface import ArrayF32

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_FATAL_ONLY = 4
_MAX_FOLDED_BYTES = 1 << 30
"""The largest constant that a graph may compute from its weights when it is loaded."""


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`. Safe under several threads."""

    def run(
        self, output_names: Sequence[str], input_feed: Mapping[str, ArrayF32]
    ) -> list[ArrayF32]:
        """The named outputs for the named inputs."""
        ...


class Sessions(Protocol):
    """The sessions of one model on one device."""

    outputs: Sequence[str]

    def current(self) -> Session:
        """The session for the batch that the calling thread runs."""
        ...


class CpuSessions:
    """Sessions that use as many cores as the calling thread's batch was granted.

    Attributes:
        outputs: the names of the graph's outputs.

    Raises:
        LoadError: onnxruntime cannot run the graph.
    """

    def __init__(self, model: bytes, device: CpuDevice) -> None:
        self._device = device
        with _file(model) as path:
            self._sessions = {
                cores: _open(path, _options(cores), [_CPU]) for cores in thread_counts(device.cores)
            }
        self.outputs: Sequence[str] = [each.name for each in self._sessions[1].get_outputs()]

    def current(self) -> Session:
        """The session with the most threads that the grant allows."""
        granted = self._device.granted
        session: Session = self._sessions[max(n for n in self._sessions if n <= granted)]
        return session


class CudaSessions:
    """One session on a GPU; batches at the same time share it.

    Attributes:
        outputs: the names of the graph's outputs.

    Raises:
        DeviceError: onnxruntime has no CUDA here, or cannot use it.
        LoadError: onnxruntime cannot run the graph.
    """

    def __init__(self, model: bytes, device: CudaDevice) -> None:
        if _CUDA not in onnxruntime.get_available_providers():
            raise DeviceError(
                f"onnxruntime {onnxruntime.__version__} is built without CUDA and cannot run on"
                f" {device.name}: install onnxruntime-gpu in its place, or set kind: KIND_CPU"
            )
        # TF32 rounds to 10 bits: fp32 would not mean fp32.
        cuda = (_CUDA, {"device_id": device.index, "use_tf32": "0"})
        with _file(model) as path:
            self._session = _open(path, _options(1), [cuda, _CPU])
        # Where CUDA's libraries are missing, onnxruntime says so in its log and goes on without.
        if self._session.get_providers()[0] != _CUDA:
            raise DeviceError(
                f"onnxruntime cannot use {device.name}: install the CUDA and cuDNN libraries that"
                f" onnxruntime-gpu {onnxruntime.__version__} is built for, or set kind: KIND_CPU"
            )
        self.outputs: Sequence[str] = [output.name for output in self._session.get_outputs()]

    def current(self) -> Session:
        """The session."""
        session: Session = self._session
        return session


def _options(cores: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Whatever fails raises, too.
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = cores
    options.inter_op_num_threads = 1
    # A spinning thread takes a core from the batches beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An arena keeps the largest batch's memory for good. A pattern asks for all of a batch's memory in one
    # piece, which malloc then fetches from the system each time.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Without VNNI instructions onnxruntime's int8 products saturate in 16 bits, and SFace comes down to a
    # cosine of 0.9889 to float32. This makes them exact there, and changes nothing on other processors.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", str(_MAX_FOLDED_BYTES)
    )
    return options


def _open(
    path: str, options: onnxruntime.SessionOptions, providers: Sequence[object]
) -> onnxruntime.InferenceSession:
    try:
        # Its fallback would try again without CUDA.
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise LoadError(f"onnxruntime cannot run the graph: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of onnxruntime's message, the rest of which are addresses."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _file(model: bytes) -> Iterator[str]:
    """The path of a file in memory: a session that is given bytes holds on to them."""
    with os.fdopen(os.memfd_create("model.onnx"), "wb") as file:
        file.write(model)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
