"""Models loaded in this process, as a server would load them, and asked about many pictures at once."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from tqdm import tqdm

from mien_server.engine import build_engine
from mien_server.errors import MienError, OperatorError
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER, NO_LANDMARKS
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.types import ModelRef
from mien_server.repository.versions import ReadyModel
from mien_server.scheduling.errors import QueueFull, RowFailed
from mien_server.settings import Settings

Fault: TypeAlias = MienError | OSError | RowFailed
"""What is wrong with one photo and no other: it cannot be read or used, or the model failed on it."""

T = TypeVar("T")
Item = TypeVar("Item")

MOST_FACES = 1000
_AT_ONCE = 32
"""Photos in the pipeline at the same time: enough to fill batches, few enough to fit into memory decoded."""


class EvaluationError(OperatorError):
    """An evaluation cannot be made, or what it found cannot be written."""


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """The models that an evaluation needs, and the pipeline that asks them.

    Attributes:
        pipeline: to be called on one event loop.
        models: by role.
    """

    pipeline: FacePipeline
    models: dict[AnyRole, ReadyModel]


@contextlib.contextmanager
def load_models(settings: Settings, wanted: Mapping[AnyRole, ModelRef]) -> Iterator[LoadedModels]:
    """Loads models as a server with these settings would, and nothing else; stops the threads at the end.

    Args:
        settings: the model repository, the devices and the limits of photos.
        wanted: the model of each role that is needed.

    Raises:
        EvaluationError: a model is not there, or does not load; or a detector places no landmarks, where an
            embedder is wanted, too.
        OperatorError: the repository cannot be used, or a device is not there.
    """
    names = {role: ref.name for role, ref in wanted.items()}
    changed = {
        "model_control_mode": "none",
        "default_detector": names.get(DETECTOR, ""),
        "default_embedder": names.get(EMBEDDER, ""),
        "max_faces": MOST_FACES,
    }
    engine = build_engine(settings.model_copy(update=changed))
    with contextlib.ExitStack() as closing:
        # Ctrl-C leaves a load at work, and the process must not end while its thread is in torch.
        closing.callback(engine.close)
        try:
            engine.loader.start(set(names.values()))
            models = {
                role: engine.catalogue.resolve(ref.name, ref.version, role=role)
                for role, ref in wanted.items()
            }
        except MienError as error:
            raise EvaluationError(str(error)) from error
        detector = models.get(DETECTOR)
        if EMBEDDER in models and detector and not detector.config.options.landmarks:
            raise EvaluationError(NO_LANDMARKS.format(detector.name))
        yield LoadedModels(engine.pipeline, models)


def run_all(
    items: Sequence[Item], work: Callable[[Item], Awaitable[T]], *, label: str
) -> list[T | Fault]:
    """Runs asynchronous work on every item, some at the same time, with a progress bar on a terminal.

    Returns:
        The results in the order of the items. Where an item is at fault, its error stands there instead.
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
    while True:
        try:
            return await work(item)
        except QueueFull as full:
            await asyncio.sleep(full.retry_after)
        except (MienError, OSError, RowFailed) as error:
            return error
