"""inference.GRPCInferenceService: Triton's own protocol, in front of the same slots as the face calls."""
# ruff: noqa: ARG001, ARG002, N802 - the signatures are gRPC's, the names Triton's

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as triton
from tritonclient.grpc import service_pb2_grpc

from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason, Unmet, at
from mien_server.observability.call_metrics import CallMetrics
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.types import Call
from mien_server.quoting import quoted
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.ensembles import ENSEMBLE_VERSION, EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.loader import Loader
from mien_server.repository.versions import State
from mien_server.rpc.calls import Context, bounded, bounded_call
from mien_server.rpc.intake import Intake
from mien_server.rpc.peers import is_local
from mien_server.rpc.status import Unimplemented
from mien_server.triton.messages import index_message, metadata_message
from mien_server.triton.request import infer_options, model_version
from mien_server.triton.runs import run_ensemble, run_model
from mien_server.triton.statistics import ensemble_timing, statistics_message
from mien_server.triton.stream import answer_stream
from mien_server.triton.tensors import add_outputs

AnyConfig: TypeAlias = ModelConfig | EnsembleConfig

SERVER_NAME = "mien"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "schedule_policy",
    "statistics",
)


def _unimplemented(why: str) -> Callable[..., Awaitable[NoReturn]]:
    """A method that is not served, and says why."""

    async def method(self: object, request: Any, context: Context) -> NoReturn:
        raise Unimplemented(why)

    return method


_shared_memory = _unimplemented(
    "Shared memory is not served: send tensors in raw_input_contents; on one machine gRPC costs little"
    " beside a model's run."
)


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton's service; docs/triton.md says what of it is served.

    Errors are raised as they are; `CallInterceptor` makes statuses of them.

    Args:
        models: which versions answer.
        loader: loads, unloads and lists models on request.
        pipeline: runs ensembles.
        pool: reads contents that take long.
        intake: counts the requests in streams. Those of calls are the interceptor's business.
        metrics: counts the errors in streams.
        ready: tells whether the health service says SERVING.
        default_deadline: how many seconds a call without a deadline of its own may take, above 0.
        hide: folders whose place on this machine callers are not told.
        remote_control: whether callers beyond this machine may load and unload models.
    """

    def __init__(
        self,
        models: Catalogue,
        loader: Loader,
        pipeline: FacePipeline,
        pool: PicturePool,
        intake: Intake,
        metrics: CallMetrics,
        *,
        ready: Callable[[], bool],
        default_deadline: float,
        hide: Sequence[Path] = (),
        remote_control: bool = False,
    ) -> None:
        self._models = models
        self._loader = loader
        self._pipeline = pipeline
        self._pool = pool
        self._intake = intake
        self._metrics = metrics
        self._ready = ready
        self._default_deadline = default_deadline
        self._hide = hide
        self._remote_control = remote_control
        self._metadata = triton.ServerMetadataResponse(
            name=SERVER_NAME, version=metadata.version("mien"), extensions=EXTENSIONS
        )

    async def ServerLive(self, request: Any, context: Context) -> Any:
        """A server that answers is alive."""
        return triton.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        """Answers what the health service says."""
        return triton.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: Any, context: Context) -> Any:
        """Whether a version, or any, would answer. A model that is unknown would not."""
        try:
            self._config(request)
        except (ModelNotFound, ModelNotReady):
            return triton.ModelReadyResponse(ready=False)
        return triton.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        """Name, version and the protocol's extensions."""
        return self._metadata

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        """A model's tensors and the versions that are ready."""
        config = self._config(request)
        versions = [
            status.version
            for status in self._models.statuses()
            if status.name == config.name and status.state is State.READY
        ]
        return metadata_message(config, versions)

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        """A model's config.pbtxt, as it was read."""
        with at("version"):
            version = model_version(request.version)
        with at("name"):
            return triton.ModelConfigResponse(config=self._models.message(request.name, version))

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        """Runs the rows of one request."""
        async with bounded_call(context, self._default_deadline) as call:
            return await self._infer(request, call)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Runs the requests of a stream. Each is admitted and bounded like a call of its own."""

        async def infer(request: Any) -> Any:
            size = request.ByteSize()
            self._intake.enter(size)
            try:
                call = Call()
                async with bounded(call, context, self._default_deadline):
                    return await self._infer(request, call)
            finally:
                self._intake.leave(size)

        await answer_stream(requests, context.write, infer, self._metrics, self._hide)

    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        """What the ready versions of all models, of one model, or one version of it have done."""
        with at("version"):
            version = model_version(request.version)
        response = triton.ModelStatisticsResponse()
        for figures in self._models.statistics():
            if request.name in ("", figures.name) and version in (0, figures.version):
                response.model_stats.append(statistics_message(figures))
        if request.name and not response.model_stats:
            self._config(request)  # says why there is nothing
        return response

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        """Every model and version of the repository, with its state."""
        _check_repository_name(request)
        statuses = await asyncio.to_thread(self._loader.index)
        return index_message(statuses, ready_only=request.ready, hide=self._hide)

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:
        """Loads a model, or loads it again; answers once it serves, or why it does not."""
        _check_repository_name(request)
        self._check_control(context)
        if request.parameters:
            raise _invalid_parameter(
                min(request.parameters),
                "what to load is what lies in the repository: change it there",
            )
        await asyncio.wrap_future(self._loader.load(request.model_name))
        return triton.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:
        """Unloads a model; answers once no new call gets it."""
        _check_repository_name(request)
        self._check_control(context)
        known = "unload_dependents"
        unknown = min((key for key in request.parameters if key != known), default=None)
        if unknown is not None:
            raise _invalid_parameter(unknown, "unloading has no parameter of that name")
        if known in request.parameters and request.parameters[known].bool_param:
            raise _invalid_parameter(
                known, "face calls may use an ensemble's models, too: unload them by name"
            )
        await asyncio.wrap_future(self._loader.unload(request.model_name))
        return triton.RepositoryModelUnloadResponse()

    SystemSharedMemoryStatus = _shared_memory
    SystemSharedMemoryRegister = _shared_memory
    SystemSharedMemoryUnregister = _shared_memory
    CudaSharedMemoryStatus = _shared_memory
    CudaSharedMemoryRegister = _shared_memory
    CudaSharedMemoryUnregister = _shared_memory
    TraceSetting = _unimplemented("Tracing is not served: there are no settings of it.")
    LogSettings = _unimplemented(
        "Log settings are fixed at the start: --log-level, --log-format (MIEN_LOG_LEVEL, …)."
    )

    def _check_control(self, context: Context) -> None:
        """Without authentication only who is on this machine decides what it serves.

        Raises:
            Unmet: MODEL_CONTROL_REFUSED, the caller is not, and nobody knows who it is.
        """
        if not self._remote_control and not is_local(context.peer()):
            raise Unmet(
                Reason.MODEL_CONTROL_REFUSED,
                "Models are loaded and unloaded from the server's own machine only: this server knows"
                " nobody, since no authentication is configured.",
            )

    def _config(self, request: Any) -> AnyConfig:
        """The configuration of the model that a request names, which must be ready.

        Raises:
            ModelNotFound, ModelNotReady: why there is none. InvalidRequest: the version is no number.
        """
        with at("version"):
            version = model_version(request.version)
        with at("name"):
            ensemble = self._models.ensemble(request.name, version)
            return ensemble or self._models.config(request.name, version)

    async def _infer(self, request: Any, call: Call) -> Any:
        options = infer_options(request)
        call.priority, call.queue_timeout = options.priority, options.queue_timeout
        name = request.model_name
        with at("model_version"):
            version = model_version(request.model_version)
        with at("model_name"):
            ensemble = self._models.ensemble(name, version)
        if ensemble:
            version = ENSEMBLE_VERSION
            outputs = await self._run_ensemble(ensemble, request, call)
        else:
            async with AsyncExitStack() as leases:
                with at("model_name"):
                    lease = await leases.enter_async_context(self._models.hold(name, version))
                version = lease.model.version
                outputs = await run_model(lease, request, call, self._pool)
        response = triton.ModelInferResponse(
            model_name=name, model_version=str(version), id=request.id
        )
        add_outputs(response, outputs)
        return response

    async def _run_ensemble(
        self, ensemble: EnsembleConfig, request: Any, call: Call
    ) -> dict[str, NDArray[Any]]:
        counter = self._models.ensemble_counter(ensemble.name)
        started = time.monotonic()
        try:
            outputs = await run_ensemble(ensemble, request, call, self._pipeline, self._pool)
        except BaseException:  # a deadline that passes cancels
            counter.record_failure(time.monotonic() - started)
            raise
        photos, seconds = request.inputs[0].shape[0], time.monotonic() - started
        counter.record_success(photos, seconds, ensemble_timing(call.stages, photos))
        return outputs


def _check_repository_name(request: Any) -> None:
    if request.repository_name:
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            "repository_name is not supported: models of all repositories are found by their names.",
            field="repository_name",
        )


def _invalid_parameter(key: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.INVALID_REQUEST, f"parameter {quoted(key)}: {why}.", field=f"parameters.{key}"
    )
