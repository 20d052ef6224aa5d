"""The face pipeline in this process, without a server in front: what a server would answer, measured."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from tqdm import tqdm

from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError, gpu_count
from mien_server.errors import MienError
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.types import Limits, ModelRef
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.loader import Loader, RepositoryError
from mien_server.repository.versions import ReadyModel
from mien_server.scheduling.errors import QueueFull, RowFailed
from mien_server.scheduling.scheduler import Scheduler
from mien_server.settings import Settings

Fault: TypeAlias = MienError | OSError | RowFailed
"""What is wrong with one photo and no other: it cannot be read or used, or the model failed on it."""

T = TypeVar("T")
Item = TypeVar("Item")

MOST_FACES = 1000
_AT_ONCE = 32
"""Photos in the pipeline at the same time: enough to fill batches, few enough to fit into memory decoded."""


class EvaluationError(Exception):
    """An evaluation that cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A pipeline and the models that it was asked to load.

    Attributes:
        pipeline: to call on one event loop.
        models: by role.
    """

    pipeline: FacePipeline
    models: dict[AnyRole, ReadyModel]


@contextlib.contextmanager
def engine(settings: Settings, wanted: dict[AnyRole, ModelRef]) -> Iterator[Engine]:
    """Loads models as a server with these settings would, and nothing else; stops the threads at the end.

    Args:
        settings: the model repository, the devices and the limits of photos.
        wanted: the model of each role that is needed.

    Raises:
        EvaluationError: a model is not there, or does not load.
    """
    cpu = CpuDevice(settings.cpu_cores or None)
    devices: list[CpuDevice | CudaDevice] = [cpu]
    devices += [CudaDevice(index) for index in range(gpu_count())]
    with contextlib.ExitStack() as closing:
        scheduler = Scheduler(devices)
        closing.callback(scheduler.close)
        pool = PicturePool(threads=settings.decode_threads or cpu.cores)
        closing.callback(pool.close)
        try:
            catalogue = Catalogue()
            loader = Loader(catalogue, settings.model_repository, scheduler, devices)
            # Ctrl-C leaves a load at work, and the process must not end while its thread is in torch.
            closing.callback(loader.close)
            loader.start({ref.name for ref in wanted.values()})
            models = {
                role: catalogue.resolve(ref.name, ref.version, role=role)
                for role, ref in wanted.items()
            }
        except (MienError, RepositoryError, DeviceError) as error:
            raise EvaluationError(str(error)) from error
        pipeline = FacePipeline(
            catalogue,
            pool,
            default_detector=wanted[DETECTOR].name if DETECTOR in wanted else "",
            default_embedder=wanted[EMBEDDER].name if EMBEDDER in wanted else "",
            limits=Limits(
                max_image_bytes=settings.max_image_bytes,
                max_image_pixels=settings.max_image_pixels,
                max_faces=MOST_FACES,
            ),
        )
        yield Engine(pipeline, models)


def run_all(
    items: Sequence[Item], work: Callable[[Item], Awaitable[T]], *, label: str
) -> list[T | Fault]:
    """Runs asynchronous work on every item, some at the same time, with a progress bar on a terminal.

    Returns:
        the results in the order of the items; where the item is at fault, its error.
    """
    return asyncio.run(_run_all(items, work, label))


async def _run_all(
    items: Sequence[Item], work: Callable[[Item], Awaitable[T]], label: str
) -> list[T | Fault]:
    results: list[T | Fault] = [OSError()] * len(items)
    waiting = iter(range(len(items)))
    bar = tqdm(total=len(items), desc=label, disable=not sys.stderr.isatty(), leave=False)

    async def worker() -> None:
        for index in waiting:
            results[index] = await _answer(work, items[index])
            bar.update()

    with bar:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(items))):
                group.create_task(worker())
    return results


async def _answer(work: Callable[[Item], Awaitable[T]], item: Item) -> T | Fault:
    try:
        return await work(item)
    except QueueFull as full:
        await asyncio.sleep(full.retry_after)
        return await _answer(work, item)
    except (MienError, OSError, RowFailed) as error:
        return error
