"""Loads a version's weights onto one device, as its configuration says."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from mien_server.backends import memory
from mien_server.backends.devices import NO_PYTORCH, CpuDevice, has_pytorch
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import LoadError
from mien_server.models.families import find_family
from mien_server.repository.config.model import Backend, ModelConfig
from mien_server.repository.placement import AnyDevice

_log = logging.getLogger(__name__)


def load_instance(
    config: ModelConfig,
    folder: Path,
    device: AnyDevice,
    *,
    precision: Precision | None = None,
    backend: Backend | None = None,
    count: int = 1,
) -> LoadedInstance:
    """Loads what is in a version folder. Blocking, for seconds.

    Args:
        config: of the model.
        folder: the version folder.
        device: where it is to run.
        precision: what to compute in; None: the configuration's.
        backend: what is to run it; None: what the configuration says for such a device.
        count: batches that a GPU may run at once.

    Raises:
        LoadError, DeviceError: why not.
    """
    if backend is None:
        backend = config.cpu_backend if isinstance(device, CpuDevice) else config.backend

    def load(backend: Backend) -> LoadedInstance:
        return _loader(backend)(
            find_family(config.architecture),
            folder / config.default_model_filename,
            normalisation=config.normalisation,
            options=config.options,
            precision=precision or config.precision,
            device=device,
            sides=config.sides,
            max_batch_size=config.batching.max_batch_size,
            count=count,
        )

    if backend != "openvino" or config.backend == "openvino":
        return load(backend)
    from mien_server.backends.openvino import Unsupported

    try:
        return load(backend)
    except Unsupported as error:
        _log.warning(
            "%s. %s runs it instead, more slowly; cpu_backend %r in config.pbtxt says so at once",
            *(error, config.backend, config.backend),
        )
    return load(config.backend)


def _loader(backend: Backend) -> Callable[..., LoadedInstance]:
    """What loads for a backend. Each takes time and memory to import, which only its own models need."""
    match backend:
        case "pytorch":
            if not has_pytorch():
                raise LoadError(f"backend pytorch cannot run it: {NO_PYTORCH}")
            late = "torch" not in sys.modules
            from mien_server.backends.pytorch import load

            if late:
                memory.keep_imports()
        case "onnxruntime":
            from mien_server.backends.onnx import load
        case "openvino":
            from mien_server.backends.openvino import load
    return load
