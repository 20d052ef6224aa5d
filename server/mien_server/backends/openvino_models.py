"""OpenVINO's compiled models for the processor: several, for batches that were granted few cores or many.

A compiled model has a fixed number of threads for each batch, and a batch cannot ask it for fewer. So there
is one with a thread for each batch, one each with 4, 16, 64, … and one with all cores; a batch takes the
largest that its grant allows. Each runs as many batches at once as its threads go into the cores, and each
keeps the weights in an order of its own, which is why there are not more. docs/backends.md has measurements.
"""

import functools
import io
import mmap
import re
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mien_server.backends.devices import CpuDevice, thread_counts
from mien_server.backends.quiet_openvino import openvino
from mien_server.backends.weights_file import LoadError
from mien_server.models.interface import ArrayF32, ImageU8, Normalisation

_CPU = "CPU"
_NOISE = re.compile(
    r"Exception from |Check '|To facilitate |FrontEnd API failed|Loading input model"
)
_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}


@functools.cache
def core() -> "openvino.Core":
    """OpenVINO's entry, one for the process."""
    return openvino.Core()


def multiplies_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor; where it does not, it takes float32."""
    return "BF16" in core().get_property(_CPU, "OPTIMIZATION_CAPABILITIES")


def read_model(graph: Path | bytes) -> "openvino.Model":
    """Reads an ONNX graph: a file, with the file of weights beside it that it may refer to, or its content.

    Files are not mapped: whoever shortened a mapped file would end the process.

    Raises:
        LoadError: it is no ONNX graph, or refers to what is not there or not in its folder.
    """
    source = io.BytesIO(graph) if isinstance(graph, bytes) else str(graph)
    try:
        frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        model: openvino.Model = frontend.convert(frontend.load(source, enable_mmap=False))
    except Exception as error:  # OpenVINO's errors have no base of their own
        raise LoadError(f"OpenVINO cannot read the graph: {reason(error)}") from error
    return model


def metadata(model: "openvino.Model", key: str) -> str:
    """What an ONNX graph's metadata says under a key; "" if nothing."""
    path = ["framework", key]
    return str(model.get_rt_info(path).value) if model.has_rt_info(path) else ""


def take_pixels(model: "openvino.Model", normalisation: Normalisation) -> "openvino.Model":
    """Puts the normalisation in front of a model's only input, [N, 3, H, W] float32, or [N, 1, H, W] of GREY.

    Returns:
        a model that takes [N, H, W, 3] uint8 RGB, or [N, H, W, 1] grey, of as many sizes.
    """
    shape = model.input().get_partial_shape()
    ready = openvino.preprocess.PrePostProcessor(model)
    pixels = ready.input()
    pixels.tensor().set_element_type(openvino.Type.u8).set_layout(
        openvino.Layout("NHWC")
    ).set_shape(openvino.PartialShape([shape[0], shape[2], shape[3], normalisation.channels]))
    pixels.model().set_layout(openvino.Layout("NCHW"))
    steps = pixels.preprocess()
    if normalisation.channel_order == "BGR":
        steps.reverse_channels()
    steps.convert_element_type(openvino.Type.f32)
    scale = normalisation.scale
    divisor = [1 / each for each in scale] if isinstance(scale, tuple) else 1 / scale
    steps.mean(list(normalisation.mean[: normalisation.channels])).scale(divisor)
    return ready.build()


class CompiledModels:
    """A model, compiled for each number of threads that its batches may have. Safe under several threads.

    Args:
        model: it may be dropped afterwards.
        device: whose grants are followed.
        precision: what to compute in, "fp32" or "bf16".

    Raises:
        LoadError: OpenVINO cannot run the model.
    """

    def __init__(self, model: "openvino.Model", device: CpuDevice, precision: str) -> None:
        self._device = device
        try:
            compiled = core().compile_model(model, _CPU, _options(1, device.cores, precision))
            # As data that all copies share. Compiled one by one, each would take as much time again, and
            # have the weights twice: as they were read, and in the order that it wants.
            self._data = _in_a_file(compiled.export_model().getbuffer())
            del compiled
            shared = np.frombuffer(self._data, np.uint8)
            self._models = {
                threads: _Copy(shared, _options(threads, device.cores, precision))
                for threads in thread_counts(device.cores)
            }
        except Exception as error:  # OpenVINO's errors have no base of their own
            raise LoadError(f"OpenVINO cannot run the graph: {reason(error)}") from error

    def run(self, pixels: ImageU8) -> list[ArrayF32]:
        """The outputs for [N, H, W, 3] uint8 RGB, in the order of the graph."""
        granted = self._device.granted
        return self._models[max(n for n in self._models if n <= granted)].run(pixels)

    def rest(self) -> None:
        """Frees what is kept for the next run. None runs meanwhile."""
        for copy in self._models.values():
            copy.rest()
        if isinstance(self._data, mmap.mmap):
            # Each copy has the weights in its own order by now. What is read once more comes from the file.
            self._data.madvise(mmap.MADV_DONTNEED)

    def try_run(self, pixels: ImageU8) -> list[ArrayF32]:
        """The same for a graph that may turn out not to run.

        Raises:
            LoadError: it does not.
        """
        try:
            return self.run(pixels)
        except Exception as error:  # OpenVINO's errors have no base of their own
            raise LoadError(f"OpenVINO cannot run the graph: {reason(error)}") from error


class _Copy:
    """A compiled model with threads of its own, and as many of its requests as were needed at once."""

    def __init__(self, data: NDArray[np.uint8], options: dict[str, object]) -> None:
        self._data = data
        self._options = options
        self._compile()

    def _compile(self) -> None:
        self._compiled = core().import_model(
            openvino.Tensor(self._data, shared_memory=True), _CPU, self._options
        )
        self._outputs = range(len(self._compiled.outputs))
        self._idle: list[openvino.InferRequest] = []

    def rest(self) -> None:
        self._idle.clear()
        self._compiled.release_memory()

    def run(self, pixels: ImageU8) -> list[ArrayF32]:
        idle = self._idle
        try:
            request = idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
            # In two steps: infer() would also make a dictionary of all outputs.
            request.start_async()
            request.wait()
        except Exception:
            # Whatever runs next in a compiled model in which something failed may fail likewise.
            self._compile()
            raise
        # Copied, because the request's own outputs are overwritten by its next run.
        outputs = [
            np.array(request.get_output_tensor(index).data, np.float32) for index in self._outputs
        ]
        idle.append(request)
        return outputs


def _in_a_file(data: memoryview) -> mmap.mmap | memoryview:
    """The same in a file without a name, which takes memory only while it is read; or as it is."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:  # there is no room, or no place that may be written to
        return data


def _options(threads: int, cores: int, precision: str) -> dict[str, object]:
    """For batches of so many threads, as many at once as go into the cores."""
    streams = max(1, cores // threads)
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # By itself it would take bfloat16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        # The threads belong to the scheduler, which moves them between models.
        "ENABLE_CPU_PINNING": False,
    }


def reason(error: Exception) -> str:
    """What OpenVINO's message says is wrong. Its other lines say where in OpenVINO, and what to read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _NOISE.match(line)]
    return (telling or lines or [type(error).__name__])[-1]
