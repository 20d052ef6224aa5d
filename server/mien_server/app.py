"""Serves: starts, keeps an eye on the models, drains and stops.

What can be wrong cheaply is found first: missing weights or a taken port end the start before the engine,
whose libraries take seconds to import, is touched.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics

from mien_server.access.setup import Access, open_access
from mien_server.access.watching import watch as watch_files
from mien_server.backends import memory
from mien_server.errors import MienError
from mien_server.limits import worst_case
from mien_server.observability.call_metrics import CallMetrics
from mien_server.observability.metrics_endpoint import MetricsEndpoint
from mien_server.observability.thread_metrics import ThreadMetrics
from mien_server.observability.tracing import open_tracing
from mien_server.rpc.intake import Intake
from mien_server.rpc.ports import Connections, UnixSocket
from mien_server.rpc.server import RpcServer
from mien_server.scheduling.errors import Draining
from mien_server.settings import Settings, flag_of, name_of
from mien_server.start_checks import StartError, check_folders, check_weights
from mien_server.threads import Threads

if TYPE_CHECKING:
    from mien_server.engine import Engine
    from mien_server.repository.catalogue import Catalogue
    from mien_server.repository.loader import Loader

logger = logging.getLogger(__name__)

ALL_MODELS = "*"
"""What `--load-model` takes for every model."""

READINESS_SECONDS = 1.0
"""How long the health service may lag behind the models."""

IDLE_SECONDS = 2.0
"""A server that no call has come to for so long, and whose photos took so much memory, gives it back. The
next call has to ask the system for some, so that what is small is kept."""

SLEEP_SECONDS = 0.5
"""How often the server looks for models that nobody calls (`idle_unload_secs`)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Returns:
        The exit status: 0, or 1 if accepted calls had to be cancelled at the end.

    Raises:
        OperatorError: it cannot start.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    started = time.monotonic()
    memory.use_one_arena()
    stop = _stop_on_signals()
    check_folders(settings.model_repository)
    if settings.model_control_mode == "none":
        check_weights(settings.model_repository, _default_models(settings))
    access = open_access(settings)
    watching = _watch_files(access)
    threads = Threads()
    tracing = open_tracing(settings.otlp_endpoint, settings.trace_ratio)
    registry = _registry(threads)
    calls = CallMetrics(registry)
    intake = Intake(
        max_calls=settings.max_pending_requests,
        max_bytes=settings.max_pending_bytes,
        max_arriving=settings.max_arriving_requests,
        max_checking=settings.max_health_checks,
    )
    server = RpcServer(
        address=settings.grpc_address,
        port=settings.grpc_port,
        max_message_bytes=settings.max_message_bytes,
        intake=intake,
        metrics=calls,
        hide=settings.model_repository,
        access_log=settings.access_log,
        arrival_seconds=settings.default_deadline_secs,
        check_seconds=settings.health_check_timeout_secs,
        gate=access.gate,
        certificate=access.certificate,
        unix=_unix_socket(settings),
        tracing=tracing,
        connections=Connections(
            most=settings.max_connections,
            handshake=settings.handshake_timeout_secs,
            max_idle=settings.max_connection_idle_secs,
            max_streams=settings.max_concurrent_streams,
            max_age=settings.max_connection_age_secs,
            max_age_grace=settings.max_connection_age_grace_secs,
            keepalive=settings.keepalive_secs,
            keepalive_timeout=settings.keepalive_timeout_secs,
        ),
    )

    parts = worst_case(settings, server.max_connections)
    sizes = {name: size >> 20 for name, size in parts.items()}
    logger.info("memory at worst", extra={"mib": sum(parts.values()) >> 20, **sizes})

    with _metrics_served(settings, registry, threads, server):
        from mien_server.engine import build_engine
        from mien_server.rpc.faces import FaceService
        from mien_server.rpc.galleries import GalleryService
        from mien_server.server_metrics import watch_server
        from mien_server.triton.service import InferenceService

        engine = build_engine(settings, threads=threads)
        memory.keep_imports()
        left = settings.exit_timeout_secs
        try:
            deadline = settings.default_deadline_secs
            faces = FaceService(engine.pipeline, default_deadline=deadline, answered=calls.faces)
            galleries = GalleryService(engine.gallery, default_deadline=deadline)
            inference = InferenceService(
                engine.catalogue,
                engine.loader,
                engine.pipeline,
                engine.pool,
                intake,
                calls,
                ready=lambda: server.ready,
                default_deadline=deadline,
                hide=settings.model_repository,
                remote_control=access.gate.closed,
            )
            watch_server(registry, server, intake, engine, access)
            await server.start(
                faces, galleries=galleries, inference=inference, reflect=settings.reflection
            )
            await _load_unless_stopped(engine, settings, stop)
            if not stop.is_set():
                intake.open()
                await _keep_up_until_stopped(
                    server, intake, engine, threads, settings, started, stop
                )
            began = time.monotonic()
            finished = await server.stop(lame_duck=settings.lame_duck_secs, grace=left)
            left = max(0, settings.lame_duck_secs + left - (time.monotonic() - began))
        finally:
            watching.cancel()
            await server.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
            if not await asyncio.to_thread(engine.close, left):
                logger.warning(
                    "exit timeout: a load has not come to its next step, and is left behind"
                )
    return 0 if finished else 1


def _registry(threads: Threads) -> CollectorRegistry:
    """The registry of all metrics. It begins with those of the process and its threads."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(ThreadMetrics(threads))
    build = Gauge("mien_build_info", "1, with mien's version.", ("version",), registry=registry)
    build.labels(metadata.version("mien")).set(1)
    return registry


@contextmanager
def _metrics_served(
    settings: Settings, registry: CollectorRegistry, threads: Threads, server: RpcServer
) -> Iterator[None]:
    """Serves the metrics from before the models load until after the last call, if they are wanted.

    Raises:
        StartError: they cannot be served where they should be.
    """
    if not settings.allow_metrics:
        yield
        return
    address, port = settings.metrics_address or settings.grpc_address, settings.metrics_port
    try:
        endpoint = MetricsEndpoint(
            registry,
            address,
            port,
            threads,
            lambda: server.unready,
            max_connections=settings.max_metrics_connections,
            idle=settings.handshake_timeout_secs,
        )
    except OSError as error:
        raise StartError(
            f"cannot serve metrics on {address} port {port}: {error.strerror}. Choose another port with"
            f" {name_of('metrics_port')}, another address with {name_of('metrics_address')}, or do"
            f" without them: {name_of('allow_metrics')} false."
        ) from error
    logger.info("metrics", extra={"url": endpoint.url})
    try:
        yield
    finally:
        endpoint.close()


def _unix_socket(settings: Settings) -> UnixSocket | None:
    if settings.grpc_socket is None:
        return None
    return UnixSocket(settings.grpc_socket, int(settings.grpc_socket_mode, 8))


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


def _watch_files(access: Access) -> asyncio.Task[None]:
    """Keeps keys and the like as their files are, and reads them again on SIGHUP."""
    now = asyncio.Event()
    if access.files:  # else SIGHUP ends the server, as it does when its terminal is closed
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, now.set)
    return asyncio.create_task(watch_files(access.files, now))


def _default_models(settings: Settings) -> tuple[str, str]:
    return (settings.default_detector, settings.default_embedder)


async def _load_unless_stopped(engine: "Engine", settings: Settings, stop: asyncio.Event) -> None:
    """Loads models off the loop; a signal ends the loads, and the wait for them at once.

    Raises:
        OperatorError: as `_load` does, unless a signal came.
    """
    stopped = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(asyncio.to_thread(_load, engine, settings))
    await asyncio.wait((stopped, loading), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if stop.is_set():
        engine.loader.close(timeout=0)
        await asyncio.wait((loading,))
        loading.exception()  # nobody asks for it any more
    else:
        await loading


def _load(engine: "Engine", settings: Settings) -> None:
    """Loads what the mode asks for. Without polling, what was asked for by name must serve then.

    Raises:
        StartError: a model does not.
        OperatorError: a model is configured for a device that is not there, or a package with families is
            broken.
    """
    from mien_server.models.roles import DETECTOR, EMBEDDER, NO_LANDMARKS

    catalogue, loader = engine.catalogue, engine.loader
    try:
        match settings.model_control_mode:
            case "none":
                loader.start()
                detector = catalogue.resolve(settings.default_detector, role=DETECTOR)
                catalogue.resolve(settings.default_embedder, role=EMBEDDER)
                if not detector.config.options.landmarks:
                    logger.warning(
                        "%s: %s. Calls that need faces aligned are refused unless they name another.",
                        name_of("default_detector"),
                        NO_LANDMARKS.format(settings.default_detector),
                    )
            case "poll":
                loader.start()
            case "explicit":
                every = ALL_MODELS in settings.load_model
                names = () if every else settings.load_model
                loader.start(None if every else names)
                # All of them are named by the asterisk, but for those that have no weights.
                for name, reason in catalogue.unready(names, strict=every).items():
                    raise StartError(f"model {name!r} ({flag_of('load_model')}): {reason}")
    except MienError as error:
        raise StartError(error.message) from error


async def _keep_up_until_stopped(
    server: RpcServer,
    intake: Intake,
    engine: "Engine",
    threads: Threads,
    settings: Settings,
    started: float,
    stop: asyncio.Event,
) -> None:
    """Keeps the health service true, memory small and, in the mode poll, the models up to date."""
    watching = watch_readiness(server, engine.catalogue, threads, settings, started)
    tasks = [
        asyncio.create_task(watching),
        asyncio.create_task(give_back_memory(intake)),
        asyncio.create_task(put_to_sleep(engine.catalogue)),
    ]
    if settings.model_control_mode == "poll":
        tasks.append(asyncio.create_task(_poll(engine.loader, settings.repository_poll_secs)))
    await stop.wait()
    # At once: a load that a caller waits for would take the time that calls have to finish.
    engine.loader.close(timeout=0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def watch_readiness(
    server: RpcServer,
    catalogue: "Catalogue",
    threads: Threads,
    settings: Settings,
    started: float,
) -> None:
    """Keeps what the health service says in step with the models and threads, until it is cancelled.

    A server that cannot find out whether it is ready is not.

    Args:
        started: `time.monotonic()` seconds.
    """
    needed = () if settings.model_control_mode == "explicit" else _default_models(settings)
    told: dict[str, str] | None = None
    while True:
        try:
            unready = catalogue.unready(needed, strict=settings.strict_readiness)
            unready |= {f"thread {name}": why for name, why in threads.unwell().items()}
            if unready != told:
                _log_readiness(server, catalogue, unready, started)
                await server.set_ready(not unready, unready)
                told = unready
        except Exception as error:
            failure = {"": repr(error)}
            if failure != told:
                logger.exception("not ready: the models cannot be asked; the next probe follows")
                await server.set_ready(False, {"server": "its models cannot be asked"})
                told = failure
        await asyncio.sleep(READINESS_SECONDS)


def _log_readiness(
    server: RpcServer, catalogue: "Catalogue", unready: dict[str, str], started: float
) -> None:
    if unready:
        why = "; ".join(f"{name}: {reason}" for name, reason in unready.items())
        logger.error("not ready: %s", why, extra={"address": server.address})
        return
    serving = [f"{v.name}:{v.version}" for v in catalogue.statuses() if v.model]
    seconds = round(time.monotonic() - started, 1)
    facts = {"address": server.address, "models": ",".join(serving)}
    logger.info("ready", extra=facts | {"seconds": seconds})


async def give_back_memory(intake: Intake) -> None:
    """Returns freed memory to the system whenever calls pause, until it is cancelled.

    What calls leave behind differs by their photos; a call after a pause takes no longer for it.
    """
    seen = intake.last_event
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        if intake.last_event != seen and intake.idle(IDLE_SECONDS):
            seen = intake.last_event
            await asyncio.to_thread(memory.release)


async def put_to_sleep(catalogue: "Catalogue") -> None:
    """Unloads models that nobody has called for as long as they may be idle, until it is cancelled."""
    while True:
        await asyncio.sleep(SLEEP_SECONDS)
        try:
            for name in catalogue.sleep():
                facts = {"model": name}
                logger.info("asleep: nobody calls the model; the next call loads it", extra=facts)
        except Exception:
            logger.exception("no model was put to sleep; the next look follows")


async def _poll(loader: "Loader", seconds: float) -> None:
    from mien_server.repository.loader import RepositoryError

    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(loader.poll)
        except (RepositoryError, Draining) as error:
            logger.warning("no poll: %s", error)
        except Exception:
            logger.exception("a poll failed; the next one follows")
