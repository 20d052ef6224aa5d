import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from mien_server.pipeline.pool import PicturePool
from mien_server.scheduling.errors import Expired, QueueFull


@pytest.fixture
def pool() -> Iterator[PicturePool]:
    pool = PicturePool(threads=1, max_requests=3, max_bytes=1000)
    yield pool
    pool.close()


class Gate:
    """Work that says when it has begun and ends when it is let through."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.open.wait(30)
        return "through"


async def begin(pool: PicturePool, gate: Gate, nbytes: int) -> asyncio.Task[tuple[str, float]]:
    task = asyncio.create_task(pool.decode(gate, nbytes=nbytes))
    await asyncio.to_thread(gate.begun.wait, 30)
    return task


async def test_work_runs_off_the_event_loop_and_its_wait_is_known(pool: PicturePool) -> None:
    name, waited = await pool.decode(lambda: threading.current_thread().name, nbytes=1)
    assert name.startswith("decode")
    assert waited >= 0
    assert (await pool.finish(lambda: threading.current_thread().name)).startswith("align")


async def test_requests_beyond_the_limit_are_refused_and_may_come_back(pool: PicturePool) -> None:
    gate = Gate()
    running = await begin(pool, gate, 1)
    waiting = [asyncio.create_task(pool.decode(lambda: 1, nbytes=1)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 calls") as caught:
        await pool.decode(lambda: 1, nbytes=1)
    assert caught.value.retry_after > 0
    gate.open.set()
    assert (await running)[0] == "through"
    assert [(await task)[0] for task in waiting] == [1, 1]
    assert (await pool.decode(lambda: 2, nbytes=1))[0] == 2


async def test_refused_work_may_come_back_when_the_queue_has_gone_by() -> None:
    pool = PicturePool(threads=2, max_requests=300)
    gate = threading.Event()
    busy = [asyncio.create_task(pool.decode(gate.wait, nbytes=1)) for _ in range(300)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await pool.decode(lambda: 1, nbytes=1)
    # Nothing has ended yet: 300 pictures of the 10 ms that a pool begins with, on two threads.
    assert caught.value.retry_after == pytest.approx(1.5)
    gate.set()
    await asyncio.gather(*busy)
    assert pool.pending == 0
    pool.close()


async def test_when_refused_work_may_come_back_follows_how_long_work_takes() -> None:
    pool = PicturePool(threads=1, max_requests=20)
    for _ in range(20):
        await pool.decode(lambda: time.sleep(0.02), nbytes=1)
    gate = threading.Event()
    busy = [asyncio.create_task(pool.decode(gate.wait, nbytes=1)) for _ in range(20)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await pool.decode(lambda: 1, nbytes=1)
    # The mean moves by a tenth of the way with every picture: 10 ms at first, 20 ms are seen.
    assert 20 * 0.0185 <= caught.value.retry_after < 20 * 0.05
    gate.set()
    await asyncio.gather(*busy)
    pool.close()


async def test_closing_cancels_what_waits_to_be_decoded_or_finished(pool: PicturePool) -> None:
    gate, cut = Gate(), Gate()
    running = await begin(pool, gate, 1)
    cutting = asyncio.create_task(pool.finish(cut))
    await asyncio.to_thread(cut.begun.wait, 30)
    waiting = [
        asyncio.create_task(pool.decode(lambda: 1, nbytes=1)),
        asyncio.create_task(pool.finish(lambda: 1)),
    ]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(pool.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]
    cut.open.set()
    assert (await running)[0] == await cutting == "through"
    await closing


async def test_bytes_beyond_the_limit_are_refused(pool: PicturePool) -> None:
    gate = Gate()
    running = await begin(pool, gate, 700)
    with pytest.raises(QueueFull, match="1,000 bytes"):
        await pool.decode(lambda: 1, nbytes=301)
    gate.open.set()
    await running
    assert (await pool.decode(lambda: 1, nbytes=301))[0] == 1


async def test_a_picture_above_the_limit_is_admitted_alone(pool: PicturePool) -> None:
    assert (await pool.decode(lambda: 1, nbytes=5000))[0] == 1


async def test_work_that_fails_gives_its_place_back(pool: PicturePool) -> None:
    def fail() -> None:
        raise ValueError("broken")

    for _ in range(5):
        with pytest.raises(ValueError, match="broken"):
            await pool.decode(fail, nbytes=900)
    assert (await pool.decode(lambda: 1, nbytes=900))[0] == 1


async def test_work_that_is_cancelled_while_it_waits_never_runs(pool: PicturePool) -> None:
    gate = Gate()
    running = await begin(pool, gate, 1)
    ran = threading.Event()
    waiting = [asyncio.create_task(pool.decode(ran.set, nbytes=400)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # Its place is free at once, while the thread is still busy.
    again = asyncio.create_task(pool.decode(lambda: "again", nbytes=800))
    await asyncio.sleep(0)
    gate.open.set()
    await running
    assert (await again)[0] == "again"
    assert not ran.is_set()


async def test_cancelled_work_lets_go_of_its_picture_at_once(pool: PicturePool) -> None:
    class Picture:
        def decode(self) -> None:
            raise AssertionError("cancelled work ran")

    gate, picture = Gate(), Picture()
    kept = weakref.ref(picture)
    running = await begin(pool, gate, 1)
    waiting = asyncio.create_task(pool.decode(picture.decode, nbytes=1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    del picture, waiting
    gc.collect()
    assert kept() is None
    gate.open.set()
    await running


async def test_an_expired_call_is_not_begun(pool: PicturePool) -> None:
    ran = threading.Event()
    with pytest.raises(Expired):
        await pool.decode(ran.set, nbytes=1, deadline=time.monotonic() - 1)
    assert not ran.is_set()


async def test_a_call_that_expires_while_it_waits_is_not_begun(pool: PicturePool) -> None:
    gate, ran = Gate(), threading.Event()
    running = await begin(pool, gate, 1)
    deadline = time.monotonic() + 0.02
    waiting = asyncio.create_task(pool.decode(ran.set, nbytes=1, deadline=deadline))
    await asyncio.sleep(0.03)
    gate.open.set()
    await running
    with pytest.raises(Expired):
        await waiting
    assert not ran.is_set()


async def test_finishing_does_not_wait_behind_decoding(pool: PicturePool) -> None:
    gate = Gate()
    running = await begin(pool, gate, 1)
    assert await pool.finish(lambda: "done") == "done"
    assert not running.done()
    gate.open.set()
    await running
