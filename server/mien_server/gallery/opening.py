"""Which store a server keeps its galleries in, by its settings."""

from mien_server.backends.devices import CpuDevice
from mien_server.errors import OperatorError
from mien_server.gallery.interface import AnyStore
from mien_server.gallery.store import Store
from mien_server.scheduling.scheduler import Scheduler
from mien_server.settings import Settings, name_of
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
    if settings.gallery_url:
        from mien_server.gallery.milvus_store import MilvusStore  # most servers have no use for it

        return MilvusStore(settings.gallery_url, token=read_token(settings), threads=threads)
    if settings.gallery_dir is None:
        return None
    return Store(
        settings.gallery_dir,
        max_bytes=settings.gallery_max_bytes,
        scheduler=scheduler,
        device=device,
        threads=threads,
    )


def read_token(settings: Settings) -> str:
    """What proves to Milvus who asks; "": nothing does.

    Raises:
        OperatorError: the file cannot be read.
    """
    if settings.gallery_token_file is None:
        return ""
    try:
        return settings.gallery_token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            f"{name_of('gallery_token_file')}: {settings.gallery_token_file} cannot be read: {error}"
        ) from error
