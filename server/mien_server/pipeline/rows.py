"""Rows into a model's slot, results out, and the time it took on the call."""

import asyncio
from collections.abc import Sequence
from typing import Any

from mien_server.pipeline.mirroring import mirror
from mien_server.pipeline.types import Call, StageTime
from mien_server.repository.leases import Lease
from mien_server.scheduling.work import Work


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
            `<role>.preprocess`, `<role>.compute` (with the rows of the batch) and `<role>.postprocess`.
        nbytes: what the call keeps in memory while it waits.
        passed: how many slots the call has passed already.
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
                passed=passed,
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
