"""Makes Triton's messages of models and of the repository's index. Pure functions."""

from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc import service_pb2 as triton

from mien_server.models.interface import TensorSpec
from mien_server.quoting import without_folders
from mien_server.repository.config.ensembles import ENSEMBLE_PLATFORM, EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.versions import State, VersionStatus
from mien_server.triton.tensors import datatype, wire_shape


def metadata_message(
    config: ModelConfig | EnsembleConfig, versions: Iterable[int]
) -> triton.ModelMetadataResponse:
    """The `inference.ModelMetadataResponse` of a model with these versions ready."""
    if isinstance(config, EnsembleConfig):
        platform, batched = ENSEMBLE_PLATFORM, config.max_batch_size > 0
    else:
        platform, batched = config.backend, True
    return triton.ModelMetadataResponse(
        name=config.name,
        versions=[str(version) for version in sorted(versions)],
        platform=platform,
        inputs=[_tensor(spec, batched=batched) for spec in config.inputs],
        outputs=[_tensor(spec, batched=batched) for spec in config.outputs],
    )


def index_message(
    statuses: Iterable[VersionStatus], *, ready_only: bool, hide: Iterable[Path] = ()
) -> triton.RepositoryIndexResponse:
    """The `inference.RepositoryIndexResponse`; a model of which no version is known has version "".

    Args:
        ready_only: whether to leave out those that do not serve.
        hide: folders whose place on this machine callers are not told.
    """
    response = triton.RepositoryIndexResponse()
    for status in statuses:
        if ready_only and status.state is not State.READY:
            continue
        response.models.add(
            name=status.name,
            version=str(status.version or ""),
            state=status.state.value,
            reason=without_folders(status.reason, hide),
        )
    return response


def _tensor(spec: TensorSpec, *, batched: bool) -> triton.ModelMetadataResponse.TensorMetadata:
    return triton.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=datatype(spec), shape=wire_shape(spec, batched=batched)
    )
