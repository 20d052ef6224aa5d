"""Loads a version's weights onto one device, as its configuration says."""

from pathlib import Path

from mien_server.backends import pytorch
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.precision import Precision
from mien_server.models.families import find_family
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.placement import AnyDevice


def load_instance(
    config: ModelConfig,
    folder: Path,
    device: AnyDevice,
    *,
    precision: Precision | None = None,
    count: int = 1,
) -> LoadedInstance:
    """Loads what is in a version folder. Blocking, for seconds.

    Args:
        config: of the model.
        folder: the version folder.
        device: where it is to run.
        precision: what to compute in; None: the configuration's.
        count: batches that a GPU may run at once.

    Raises:
        LoadError, DeviceError: why not.
    """
    load = pytorch.load
    if config.backend == "onnxruntime":
        # Takes 0.1 s and 18 MB, which only such models need.
        from mien_server.backends import onnx

        load = onnx.load
    return load(
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
