"""Makes the golden file of a version: what its weights answer in float32 on the processor.

Something else than what will run them says so: PyTorch for mien's own networks, and where there is none
onnxruntime, by the graph that OpenVINO gets.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from mien_server.backends.devices import CpuDevice, has_pytorch
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import GRAPH
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.golden import make_golden, write_golden_file
from mien_server.repository.instances import load_instance
from mien_server.repository.loading import warm_up


def write_golden(config: ModelConfig, folder: Path) -> str:
    """Writes the golden file into a version folder that has its weights and no manifest yet.

    Blocking, for seconds: loads the weights.

    Args:
        config: of the model.
        folder: the version folder.

    Returns:
        "", or why there is nothing to compare with and none was written.

    Raises:
        LoadError: the weights cannot be loaded.
        WarmupError: they do not compute what the configuration says.
    """
    with _reference(config, folder) as (by, weights):
        # An ONNX graph computes in what it was exported in, and in nothing else.
        precision: Precision = "fp32" if by.backend == "pytorch" else "auto"
        # By the backend that others are to agree with.
        instance = load_instance(by, weights, CpuDevice(), precision=precision, backend=by.backend)
    try:
        warm_up(replace(config, warmup=()), 0, instance, lambda: None)
        if instance.precision != "fp32":
            return f"the weights are in {instance.precision}, not in fp32"
        golden = make_golden(config, instance)
    finally:
        instance.close()
    if golden is None:
        return config.role.no_reference
    write_golden_file(folder, golden)
    return ""


@contextmanager
def _reference(config: ModelConfig, folder: Path) -> Iterator[tuple[ModelConfig, Path]]:
    """The configuration and the folder that the reference is loaded from."""
    if config.backend != "pytorch" or has_pytorch() or not (folder / GRAPH).is_file():
        yield config, folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        whole = replace(config, backend="onnxruntime", default_model_filename="model.onnx")
        onnx.save(onnx.load(folder / GRAPH), Path(scratch) / whole.default_model_filename)
        yield whole, Path(scratch)
