"""Rows into a model's slot, results out, and the time it took on the call."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from mien_server.pipeline.mirroring import mirror
from mien_server.pipeline.types import Call, StageTime
from mien_server.repository.leases import Lease
from mien_server.scheduling.work import Work

T = TypeVar("T")


async def run_rows(
    lease: Lease,
    rows: Sequence[Any],
    call: Call,
    *,
    nbytes: int,
    stage: int,
    deadline: float | None = None,
) -> Sequence[Any]:
    """Queues rows that share one request and waits for their results.

    Cancelling the caller takes the request out of the queue.

    Args:
        lease: of the model whose slot runs them; its shadow, if there is one, gets copies.
        rows: at least one, of one shape; at most the model's `max_batch_size`.
        call: whose priority, age and queue timeout count; gets the stages `<role>.queue`, `.preprocess`,
            `.compute` (with the rows of the batch) and `.postprocess`.
        nbytes: that the call keeps in memory while it waits.
        stage: slots that the call has passed already.
        deadline: `time.monotonic()` seconds.

    Raises:
        SchedulingError: why there is no result.
    """
    role = lease.model.config.role
    shape = role.shape(rows[0])
    done = await asyncio.wrap_future(
        lease.model.slot.submit(
            Work(
                rows=rows,
                shape=shape,
                nbytes=nbytes,
                deadline=deadline,
                timeout=call.queue_timeout,
                priority=call.priority,
                passed=stage,
                arrived=call.arrived,
            )
        )
    )
    timing = done.timing
    call.stages += [
        StageTime(f"{role.name}.queue", timing.queue),
        StageTime(f"{role.name}.preprocess", timing.preprocess),
        StageTime(f"{role.name}.compute", timing.compute, timing.batch_rows),
        StageTime(f"{role.name}.postprocess", timing.postprocess),
    ]
    if lease.shadow:
        mirror(lease.model, lease.shadow, rows, done.results, shape=shape, nbytes=nbytes)
    return done.results


async def together(*parts: Coroutine[Any, Any, T]) -> list[T]:
    """Runs parts of one call at the same time; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
