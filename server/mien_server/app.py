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

from mien_server.errors import MienError
from mien_server.rpc.interceptor import Admission
from mien_server.rpc.server import ListenError, RpcServer
from mien_server.settings import Settings, flag_of

if TYPE_CHECKING:
    from mien_server.pipeline.faces import FacePipeline
    from mien_server.pipeline.pool import DecodePool
    from mien_server.repository.repository import ModelRepository
    from mien_server.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

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
    stop = _stop_on_signals()
    check_weights(settings.model_repository, (settings.default_detector, settings.default_embedder))
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

    engine = _build(settings)
    try:
        faces = FaceService(engine.pipeline, default_deadline=settings.default_deadline_secs)
        await server.start(faces, reflect=settings.reflection)
        if not stop.is_set():
            await _load(engine.repository, settings)
            admission.open()
        if not stop.is_set():
            await _announce(server, engine.repository, settings, started)
        await stop.wait()
        finished = await server.stop(
            lame_duck=settings.lame_duck_secs, grace=settings.exit_timeout_secs
        )
    finally:
        await server.close()
        await asyncio.to_thread(engine.close)
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
                f"model {name!r} has no weights in {folders[0]}. Install those that are shipped with"
                f" `mien-server models install {flags}`; docs/models.md says how to bring your own."
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

    def close(self) -> None:
        """Stops the threads; blocks until what they run is done."""
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
            settings.model_repository, scheduler, devices, installable=SHIPPED
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


async def _load(repository: "ModelRepository", settings: Settings) -> None:
    """Loads every model off the loop; the two defaults must serve.

    Raises:
        StartError: one of them does not, or a model is configured for a device that is not there.
    """
    from mien_server.backends.devices import DeviceError

    try:
        await asyncio.to_thread(repository.load_all)
        repository.resolve(settings.default_detector, task="detect")
        repository.resolve(settings.default_embedder, task="embed")
    except DeviceError as error:
        raise StartError(str(error)) from error
    except MienError as error:
        raise StartError(error.message) from error


async def _announce(
    server: RpcServer, repository: "ModelRepository", settings: Settings, started: float
) -> None:
    versions = [status for status in repository.index() if status.version]
    facts = {
        "address": server.address,
        "models": ",".join(f"{v.name}:{v.version}" for v in versions if v.model),
        "seconds": round(time.monotonic() - started, 1),
    }
    failed = [f"{v.name}:{v.version}" for v in versions if not v.model]
    if failed and settings.strict_readiness:
        logger.error(
            "not ready, for not every installed version is (%s)",
            flag_of("strict_readiness"),
            extra=facts | {"failed": ",".join(failed)},
        )
        return
    await server.set_ready(True)
    logger.info("ready", extra=facts)
