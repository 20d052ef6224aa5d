"""Everything below the RPC layer, built in one place for the server, evaluations, benchmarks and tests."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mien_server.backends.devices import CpuDevice, CudaDevice, gpu_count
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.opening import open_store
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.types import Limits
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.loader import Loader
from mien_server.repository.placement import AnyDevice
from mien_server.scheduling.scheduler import Scheduler
from mien_server.settings import Settings
from mien_server.threads import Threads
from mien_server.weights.fetch.sources import INSTALLABLE


@dataclass(frozen=True, slots=True)
class Engine:
    """What answers calls. Nothing is loaded until `loader` is asked to; `close` must follow.

    Attributes:
        devices: what computes: the processor, and every GPU that there is.
        scheduler: runs the models' batches on the devices.
        catalogue: says which models and versions answer.
        loader: loads them from the repository's folders.
        pool: the threads for work on pictures.
        pipeline: answers Detect, Embed, Verify and Analyze, to be called on one event loop.
        gallery: keeps and finds faces, on the same loop; None: there is no place for it.
    """

    devices: Sequence[AnyDevice]
    scheduler: Scheduler
    catalogue: Catalogue
    loader: Loader
    pool: PicturePool
    pipeline: FacePipeline
    gallery: Gallery | None

    def close(self, timeout: float | None = None) -> bool:
        """Stops the threads, and blocks until what they run is done.

        Returns:
            False if `timeout` seconds were not enough for a load, which is left behind.
        """
        ended = self.loader.close(timeout)
        self.pool.close()
        self.scheduler.close()
        if self.gallery is not None:
            self.gallery.store.close()
        return ended


def build_engine(
    settings: Settings, *, draw: random.Random | None = None, threads: Threads | None = None
) -> Engine:
    """Builds an engine as a server with these settings has it.

    Args:
        settings: names the repositories, the devices and the limits.
        draw: decides which calls go to a canary; None: anew for each engine.
        threads: keeps the engine's threads alive; None: nobody asks how they are.

    Raises:
        OperatorError: a model repository is no folder, the core budget cannot hold, or the galleries cannot
            be opened.
    """
    cpu = CpuDevice(settings.cpu_cores or None)
    devices: list[AnyDevice] = [cpu]
    devices += [CudaDevice(index) for index in range(gpu_count())]
    max_requests, max_bytes = settings.queue_limits
    scheduler = Scheduler(
        devices,
        max_requests=max_requests,
        max_bytes=max_bytes,
        threads=threads,
    )
    catalogue = Catalogue(draw)
    store = None
    try:
        store = open_store(settings, scheduler=scheduler, device=cpu, threads=threads)
        loader = Loader(
            catalogue,
            settings.model_repository,
            scheduler,
            devices,
            mode=settings.model_control_mode,
            installable=INSTALLABLE,
        )
    except BaseException:
        scheduler.close()
        if store is not None:
            store.close()
        raise
    max_pictures, max_picture_bytes = settings.decode_limits
    pool = PicturePool(
        threads=settings.decode_threads or cpu.cores,
        max_requests=max_pictures,
        max_bytes=max_picture_bytes,
        keeper=threads,
    )
    pipeline = FacePipeline(
        catalogue,
        pool,
        default_detector=settings.default_detector,
        default_embedder=settings.default_embedder,
        limits=Limits(
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_faces=settings.max_faces,
        ),
    )
    gallery = None
    if store is not None:
        gallery = Gallery(store, catalogue, pipeline, default_embedder=settings.default_embedder)
    return Engine(devices, scheduler, catalogue, loader, pool, pipeline, gallery)
