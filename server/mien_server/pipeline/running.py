"""Work of one call that runs elsewhere: rows in a model's slot, and parts of the call at the same time."""

import asyncio
import time
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any, TypeVar

from mien_server.pipeline.mirroring import mirror
from mien_server.pipeline.types import Call, ModelIdentity, StageTime
from mien_server.repository.versions import Lease, ReadyModel
from mien_server.scheduling.interface import Work
from mien_server.scheduling.scheduler import Slot

T = TypeVar("T")


async def together(*parts: Coroutine[Any, Any, T]) -> list[T]:
    """Runs the parts at the same time. The first that fails cancels the others, and its error is raised."""
    if len(parts) == 1:  # as most often, which needs no task of its own
        return [await parts[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def identity_of(model: ReadyModel) -> ModelIdentity:
    """What answers say of the model that made them."""
    return ModelIdentity(model.name, model.version, model.fingerprint)


async def run_rows(
    lease: Lease,
    rows: Sequence[Any],
    call: Call,
    *,
    nbytes: int,
    passed: int,
    deadline: float | None = None,
) -> Sequence[Any]:
    """Queues rows that share one request and waits for their results.

    If the caller is cancelled, the request leaves the queue. If the model has a shadow, that gets copies
    of the rows.

    Args:
        rows: at least one and at most the model's `max_batch_size`, all of one shape.
        call: its priority, age and queue timeout count. It gets the stages `<role>.queue`,
            `<role>.preprocess`, `<role>.compute` (with the batch and the model) and `<role>.postprocess`.
        nbytes: what the call keeps in memory while it waits.
        passed: how many slots the call has passed already.
        deadline: `time.monotonic()` seconds.

    Raises:
        SchedulingError: why there is no result.
    """
    model = lease.model
    shape = model.config.role.shape(rows[0])
    results = await run_in_slot(
        model.slot,
        model.config.role.name,
        rows,
        call,
        shape=shape,
        nbytes=nbytes,
        passed=passed,
        deadline=deadline,
        model=identity_of(model),
    )
    if lease.shadow:
        mirror(model, lease.shadow, rows, results, shape=shape, nbytes=nbytes)
    return results


async def run_parts(lease: Lease, rows: Sequence[Any], call: Call, *, passed: int) -> list[Any]:
    """As `run_rows`, of any number of rows: in requests of at most the model's batch, all at once."""
    size = lease.model.config.batching.max_batch_size
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    results = await together(
        *(
            run_rows(
                lease,
                part,
                call,
                nbytes=sum(row.image.nbytes for row in part),
                passed=passed,
                deadline=call.deadline,
            )
            for part in parts
        )
    )
    return [result for part in results for result in part]


async def run_in_slot(
    slot: Slot,
    stage: str,
    rows: Sequence[Any],
    call: Call,
    *,
    nbytes: int,
    passed: int,
    deadline: float | None,
    shape: Hashable = None,
    model: ModelIdentity | None = None,
) -> Sequence[Any]:
    """As `run_rows`, of a slot that need not be a model's.

    Args:
        stage: what the names of the stages begin with.
        shape: of the rows: see `Work`.
        model: that the slot is of, if it is a model's.
    """
    queued = time.monotonic()
    done = await asyncio.wrap_future(
        slot.submit(
            Work(
                rows=rows,
                shape=shape,
                nbytes=nbytes,
                deadline=deadline,
                timeout=call.queue_timeout,
                priority=call.priority,
                passed=passed,
                arrived=call.arrived,
            )
        )
    )
    timing = done.timing
    call.add(queued, StageTime(f"{stage}.queue", timing.queue))
    call.add(
        timing.began,
        StageTime(f"{stage}.preprocess", timing.preprocess),
        StageTime(
            f"{stage}.compute",
            timing.compute,
            timing.batch_rows,
            batch=timing.batch,
            model=model,
        ),
        StageTime(f"{stage}.postprocess", timing.postprocess),
    )
    return done.results
