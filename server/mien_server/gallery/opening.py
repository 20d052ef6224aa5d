"""Which store a server keeps its galleries in, by its settings."""

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.interface import AnyStore
from mien_server.gallery.milvus_access import read_access
from mien_server.gallery.store import Store
from mien_server.scheduling.scheduler import Scheduler
from mien_server.settings import Settings
from mien_server.threads import Threads


def open_store(
    settings: Settings, *, scheduler: Scheduler, device: CpuDevice, threads: Threads | None
) -> AnyStore | None:
    """Opens the galleries; None: there are none.

    Args:
        settings: say where they are.
        scheduler: runs the searches in memory.
        device: the processor that it runs them on.
        threads: keeps the stores' threads alive; None: nobody asks how they are.

    Raises:
        OperatorError: they cannot be opened.
    """
    access = read_access(settings, settings.gallery_url or "")
    if settings.gallery_url:
        from mien_server.gallery.milvus_store import MilvusStore  # most servers have no use for it

        return MilvusStore(settings.gallery_url, access=access, threads=threads)
    if settings.gallery_dir is None:
        return None
    return Store(
        settings.gallery_dir,
        max_bytes=settings.gallery_max_bytes,
        scheduler=scheduler,
        device=device,
        threads=threads,
    )
