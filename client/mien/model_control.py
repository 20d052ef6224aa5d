"""Triton's model control and statistics, as `mien models` uses them.

Needs tritonclient, which carries Triton's messages: `pip install 'mien[models]'`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import grpc
from google.protobuf import json_format, text_format

from mien.access import Bearer, TokenLike
from mien.channel import open_channel, resolve_address
from mien.errors import ModelNotFound, from_rpc_error
from mien.status import ModelStatus, statuses

try:
    from tritonclient.grpc import service_pb2 as triton
    from tritonclient.grpc import service_pb2_grpc
except ImportError as error:
    raise ImportError("models need tritonclient: pip install 'mien[models]'") from error

_NANOSECONDS_PER_MILLISECOND = 1e6


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: its name, its type (UINT8, FP32, BYTES), and its shape, -1 where it varies."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """One model.

    Attributes:
        name: the model's.
        statuses: of its versions.
        platform: what runs it: pytorch, ensemble; "" if no version is ready, as all below are empty then.
        inputs: what it takes.
        outputs: what it gives.
        config: its config.pbtxt, as Triton's message.
    """

    name: str
    statuses: list[ModelStatus]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    config: Any

    @property
    def config_text(self) -> str:
        """The configuration as text."""
        return str(text_format.MessageToString(self.config))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "versions": [status.as_dict() for status in self.statuses],
            "platform": self.platform,
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
            "config": json_format.MessageToDict(self.config, preserving_proto_field_name=True),
        }


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one version has done since it was loaded, or between two looks.

    Attributes:
        name: the model's.
        version: 1 or more.
        requests: answered with results.
        failed: failed, refused, expired or cancelled.
        rows: images in the requests answered.
        batches: runs of the model.
        milliseconds: summed over the requests answered: `total`, and of it `queue`, `input`, `infer` and
            `output`; without those that were not measured.
        batch_sizes: runs by number of rows.
        traffic: where the model splits its traffic, what this version got of it.
    """

    name: str
    version: int
    requests: int
    failed: int
    rows: int
    batches: int
    milliseconds: Mapping[str, float]
    batch_sizes: Mapping[int, int]
    traffic: Mapping[str, int]

    @property
    def rows_per_batch(self) -> float | None:
        """How full batches were, or None if there was none."""
        return self.rows / self.batches if self.batches else None

    def mean(self, *parts: str) -> float | None:
        """Milliseconds of a request in these parts, or None if none was measured."""
        if not self.requests or not self.milliseconds.keys() >= {*parts}:
            return None
        return sum(self.milliseconds[part] for part in parts) / self.requests

    def since(self, earlier: Self | None) -> Self:
        """What was done since an earlier look; all of it, if the version was loaded anew meanwhile."""
        if earlier is None or earlier.requests > self.requests or earlier.failed > self.failed:
            return self
        return type(self)(
            name=self.name,
            version=self.version,
            requests=self.requests - earlier.requests,
            failed=self.failed - earlier.failed,
            rows=self.rows - earlier.rows,
            batches=self.batches - earlier.batches,
            milliseconds=_difference(self.milliseconds, earlier.milliseconds),
            batch_sizes=_difference(self.batch_sizes, earlier.batch_sizes),
            traffic=_difference(self.traffic, earlier.traffic),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ModelControl:
    """Looks at a server's models, loads and unloads them. Use it in a `with` block.

    Args:
        address: host:port; unset, the variable MIEN_ADDRESS, or else localhost:8001.
        timeout: seconds that a call may take, above 0.
        credentials: for TLS; None is plain text.
        api_key: as for `Client`.
        token: as for `Client`.
        insecure: as for `Client`.

    Every call raises a `MienError`.
    """

    def __init__(
        self,
        address: str | None,
        *,
        timeout: float,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        token: TokenLike | None = None,
        insecure: bool = False,
    ) -> None:
        self.address = resolve_address(address)
        self._bearer = Bearer(
            api_key,
            token,
            address=self.address,
            encrypted=credentials is not None,
            insecure=insecure,
        )
        self.timeout = timeout
        self._encrypted = credentials is not None
        self._channel = open_channel(self.address, credentials)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def index(self, name: str = "") -> list[ModelStatus]:
        """Every model and version of the repository, or those of one model.

        Raises:
            ModelNotFound: there is no model of that name.
        """
        answer = self._call("RepositoryIndex", triton.RepositoryIndexRequest())
        known = list(statuses(answer.models))
        if not name:
            return known
        found = [status for status in known if status.name == name]
        if not found:
            names = ", ".join(sorted({status.name for status in known})) or "none"
            raise ModelNotFound(
                f"there is no model {name!r}; the models are: {names}", reason="MODEL_NOT_FOUND"
            )
        return found

    def details(self, name: str) -> ModelDetails:
        """One model: its versions, and what the one that answers takes and gives.

        Raises:
            ModelNotFound: there is none of that name.
        """
        found = self.index(name)
        if not any(status.state == "READY" for status in found):
            nothing = triton.ModelConfigResponse().config
            return ModelDetails(name, found, "", [], [], nothing)
        described = self._call("ModelMetadata", triton.ModelMetadataRequest(name=name))
        configured = self._call("ModelConfig", triton.ModelConfigRequest(name=name))
        return ModelDetails(
            name=name,
            statuses=found,
            platform=described.platform,
            inputs=_tensors(described.inputs),
            outputs=_tensors(described.outputs),
            config=configured.config,
        )

    def load(self, name: str) -> list[ModelStatus]:
        """Loads a model, or loads it again; its versions then.

        Raises:
            FailedPrecondition: it could not be loaded, or the server does not load on request.
        """
        self._call("RepositoryModelLoad", triton.RepositoryModelLoadRequest(model_name=name))
        return self.index(name)

    def unload(self, name: str) -> list[ModelStatus]:
        """Unloads a model; its versions then. Calls that hold one may still finish."""
        self._call("RepositoryModelUnload", triton.RepositoryModelUnloadRequest(model_name=name))
        return self.index(name)

    def statistics(self, name: str = "") -> list[ModelFigures]:
        """What the ready versions of all models, or of one, have done since they were loaded."""
        answer = self._call("ModelStatistics", triton.ModelStatisticsRequest(name=name))
        return [_figures(message) for message in answer.model_stats]

    def _call(self, method: str, request: Any) -> Any:
        try:
            call = getattr(self._stub, method)
            return call(request, timeout=self.timeout, metadata=self._bearer.metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(
                error,
                method=method,
                address=self.address,
                timeout=self.timeout,
                encrypted=self._encrypted,
            ) from error


def _tensors(messages: Sequence[Any]) -> list[Tensor]:
    return [Tensor(each.name, each.datatype, list(each.shape)) for each in messages]


def _figures(message: Any) -> ModelFigures:
    stats = message.inference_stats
    parts = {
        "total": stats.success,
        "queue": stats.queue,
        "input": stats.compute_input,
        "infer": stats.compute_infer,
        "output": stats.compute_output,
    }
    return ModelFigures(
        name=message.name,
        version=int(message.version),
        requests=stats.success.count,
        failed=stats.fail.count,
        rows=message.inference_count,
        batches=message.execution_count,
        milliseconds={
            name: each.ns / _NANOSECONDS_PER_MILLISECOND
            for name, each in parts.items()
            if each.count
        },
        batch_sizes={each.batch_size: each.compute_infer.count for each in message.batch_stats},
        traffic={key: each.success.count for key, each in sorted(message.response_stats.items())},
    )


def _difference(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value - before.get(key, 0) for key, value in now.items()}
