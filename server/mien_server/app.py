"""The composition root: builds every part, starts, serves, drains, stops. The only place that knows all.

What can be wrong cheaply is found first: missing weights or a taken port end the start before torch,
which takes seconds to import, is touched.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mien_server.backends import memory
from mien_server.errors import MienError
from mien_server.rpc.interceptor import Admission
from mien_server.rpc.server import ListenError, RpcServer
from mien_server.scheduling.errors import Draining
from mien_server.settings import Settings, flag_of

if TYPE_CHECKING:
    from mien_server.pipeline.faces import FacePipeline
    from mien_server.pipeline.pool import DecodePool
    from mien_server.repository.repository import ModelRepository
    from mien_server.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

ALL_MODELS = "*"
"""What `--load-model` takes for every model."""

READINESS_SECONDS = 1.0
"""How long the health service may lag behind the models."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Returns:
        The exit status: 0, or 1 if accepted calls had to be cancelled at the end.

    Raises:
        StartError: it cannot start.
    """
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    started = time.monotonic()
    memory.use_one_arena()
    stop = _stop_on_signals()
    if settings.model_control_mode == "none":
        check_weights(settings.model_repository, _default_models(settings))
    admission = Admission(
        max_calls=settings.max_pending_requests, max_bytes=settings.max_pending_bytes
    )
    try:
        server = RpcServer(
            address=settings.grpc_address,
            port=settings.grpc_port,
            max_message_bytes=settings.max_message_bytes,
            admission=admission,
        )
    except ListenError as error:
        raise StartError(str(error)) from error

    from mien_server.rpc.faces import FaceService
    from mien_server.rpc.inference import InferenceService

    engine = _build(settings)
    try:
        deadline = settings.default_deadline_secs
        faces = FaceService(engine.pipeline, default_deadline=deadline)
        inference = InferenceService(
            engine.repository,
            engine.pipeline,
            engine.pool,
            admission,
            ready=lambda: server.ready,
            default_deadline=deadline,
        )
        await server.start(faces, inference=inference, reflect=settings.reflection)
        await _load_unless_stopped(engine.repository, settings, stop)
        if not stop.is_set():
            admission.open()
            await _keep_up_until_stopped(server, engine.repository, settings, started, stop)
        finished = await server.stop(
            lame_duck=settings.lame_duck_secs, grace=settings.exit_timeout_secs
        )
    finally:
        await server.close()
        await asyncio.to_thread(engine.close, settings.exit_timeout_secs)
    return 0 if finished else 1


def check_weights(repositories: Sequence[Path], models: Sequence[str]) -> None:
    """Checks that each of the models has an installed version, judged by their folders alone.

    Raises:
        StartError: there is no such model, or it has no weights; names the command that installs them.
    """
    for name in models:
        folders = [path / name for path in repositories if (path / name).is_dir()]
        if not folders:
            places = ", ".join(map(str, repositories))
            raise StartError(
                f"there is no model {name!r} in {places} ({flag_of('model_repository')})"
            )
        if not any(any(folder.glob("*/manifest.json")) for folder in folders):
            flags = f"{flag_of('model_repository')} {folders[0].parent}"
            raise StartError(
                f"model {name!r} has no weights in {folders[0]}. Install those of the default models"
                f" with `mien-server models install {flags}`, of another shipped one by adding its name;"
                " docs/models.md says how to bring your own."
            )


def _stop_on_signals() -> asyncio.Event:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def begin(number: signal.Signals) -> None:
        logger.info("stopping on %s; a second signal ends the process at once", number.name)
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, begin, number)
    return stop


@dataclass(frozen=True, slots=True)
class _Engine:
    """What answers, below the RPC layer."""

    scheduler: "Scheduler"
    repository: "ModelRepository"
    pool: "DecodePool"
    pipeline: "FacePipeline"

    def close(self, timeout: float) -> None:
        """Stops the threads; blocks until what they run is done, of a load for `timeout` seconds only."""
        self.repository.close(timeout)
        self.pool.close()
        self.scheduler.close()


def _build(settings: Settings) -> _Engine:
    import torch

    from mien_server.backends.devices import CpuDevice, CudaDevice
    from mien_server.pipeline.faces import FacePipeline
    from mien_server.pipeline.pool import DecodePool
    from mien_server.pipeline.types import Limits
    from mien_server.repository.repository import ModelRepository, RepositoryError
    from mien_server.scheduling.scheduler import Scheduler
    from mien_server.weights.sources import SHIPPED

    memory.keep_imports()
    cpu = CpuDevice(settings.cpu_cores or None)
    gpus = [CudaDevice(index) for index in range(torch.cuda.device_count())]
    devices: list[CpuDevice | CudaDevice] = [cpu, *gpus]
    scheduler = Scheduler(
        devices,
        max_requests=settings.max_pending_requests,
        max_bytes=settings.max_pending_bytes,
    )
    try:
        repository = ModelRepository(
            settings.model_repository,
            scheduler,
            devices,
            mode=settings.model_control_mode,
            installable=SHIPPED,
        )
    except RepositoryError as error:
        scheduler.close()
        raise StartError(str(error)) from error
    pool = DecodePool(
        threads=settings.decode_threads or cpu.cores,
        max_requests=settings.max_pending_requests,
        max_bytes=settings.max_pending_bytes,
    )
    pipeline = FacePipeline(
        repository,
        pool,
        default_detector=settings.default_detector,
        default_embedder=settings.default_embedder,
        limits=Limits(
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_faces=settings.max_faces,
        ),
    )
    return _Engine(scheduler, repository, pool, pipeline)


def _default_models(settings: Settings) -> tuple[str, str]:
    return (settings.default_detector, settings.default_embedder)


async def _load_unless_stopped(
    repository: "ModelRepository", settings: Settings, stop: asyncio.Event
) -> None:
    """Loads models off the loop; a signal ends it after the version that is being loaded.

    Raises:
        StartError: as `_load` does, unless a signal came.
    """
    stopped = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(asyncio.to_thread(_load, repository, settings))
    await asyncio.wait((stopped, loading), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if stop.is_set():
        await asyncio.to_thread(repository.close)
        await asyncio.wait((loading,))
        loading.exception()  # nobody asks for it any more
    else:
        await loading


def _load(repository: "ModelRepository", settings: Settings) -> None:
    """Loads what the mode asks for. Without polling, what was asked for by name must serve then.

    Raises:
        StartError: a model does not, or is configured for a device that is not there.
    """
    from mien_server.backends.devices import DeviceError
    from mien_server.repository.repository import RepositoryError

    try:
        match settings.model_control_mode:
            case "none":
                repository.start()
                repository.resolve(settings.default_detector, task="detect")
                repository.resolve(settings.default_embedder, task="embed")
            case "poll":
                repository.start()
            case "explicit":
                names = None if ALL_MODELS in settings.load_model else settings.load_model
                repository.start(names)
                for name, reason in repository.unready(names or (), strict=False).items():
                    raise StartError(f"model {name!r} ({flag_of('load_model')}): {reason}")
    except (DeviceError, RepositoryError) as error:
        raise StartError(str(error)) from error
    except MienError as error:
        raise StartError(error.message) from error


async def _keep_up_until_stopped(
    server: RpcServer,
    repository: "ModelRepository",
    settings: Settings,
    started: float,
    stop: asyncio.Event,
) -> None:
    """Keeps the health service true and, in the mode poll, the models up to date."""
    tasks = [asyncio.create_task(_watch_readiness(server, repository, settings, started))]
    if settings.model_control_mode == "poll":
        tasks.append(asyncio.create_task(_poll(repository, settings.repository_poll_secs)))
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_readiness(
    server: RpcServer, repository: "ModelRepository", settings: Settings, started: float
) -> None:
    needed = () if settings.model_control_mode == "explicit" else _default_models(settings)
    told: dict[str, str] | None = None
    while True:
        unready = repository.unready(needed, strict=settings.strict_readiness)
        if unready != told:
            told = unready
            if unready:
                why = "; ".join(f"{name}: {reason}" for name, reason in unready.items())
                logger.error("not ready: %s", why, extra={"address": server.address})
            else:
                serving = [f"{v.name}:{v.version}" for v in repository.statuses() if v.model]
                seconds = round(time.monotonic() - started, 1)
                facts = {"address": server.address, "models": ",".join(serving)}
                logger.info("ready", extra=facts | {"seconds": seconds})
            await server.set_ready(not unready)
        await asyncio.sleep(READINESS_SECONDS)


async def _poll(repository: "ModelRepository", seconds: float) -> None:
    from mien_server.repository.repository import RepositoryError

    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(repository.poll)
        except (RepositoryError, Draining) as error:
            logger.warning("no poll: %s", error)
        except Exception:
            logger.exception("a poll failed; the next one follows")
