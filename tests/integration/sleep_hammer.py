"""A process whose model falls asleep under random traffic, and that reports what callers saw, as JSON.

    python -m tests.integration.sleep_hammer SLEEPS REPOSITORY CROP

It is a process of its own, so that its memory is that of a server and not of everything tested before.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from mien_server.backends import memory
from tests.integration.repository_rig import SECONDS, Rig, open_rig

IDLE = 0.02
"""What the model's `idle_unload_secs` are to be."""

MOST_AT_ONCE = 4
MEASURED_FIRST = 5


@dataclass
class Report:
    """What happened.

    Attributes:
        answers: calls answered.
        failures: calls that were not, by their errors.
        slept, woken: how often.
        longest: seconds of the longest call.
        awake: MiB resident with the model loaded.
        asleep: MiB resident with the model asleep, after so many sleeps.
    """

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    slept: int = 0
    woken: int = 0
    longest: float = 0.0
    awake: float = 0.0
    asleep: dict[int, float] = field(default_factory=dict)


def _resident() -> float:
    memory.release()
    return psutil.Process().memory_info().rss / 2**20


async def _call(rig: Rig, crop: bytes, after: float, seen: Report) -> None:
    await asyncio.sleep(after)
    began = time.monotonic()
    try:
        await rig.embed(crop, aligned=True)
    except Exception as error:  # whatever a caller would have been told
        seen.failures.append(repr(error))
    else:
        seen.answers += 1
    seen.longest = max(seen.longest, time.monotonic() - began)


async def _call_until(
    sleeps: int, rig: Rig, crop: bytes, draw: random.Random, seen: Report
) -> None:
    """Bursts of calls, with pauses about as long as the model may be idle."""
    while rig.catalogue.sleepers()[0].slept < sleeps:
        delays = [draw.uniform(0, 2 * IDLE) for _ in range(draw.randint(1, MOST_AT_ONCE))]
        await asyncio.gather(*(_call(rig, crop, each, seen) for each in delays))
        await asyncio.sleep(draw.uniform(0.5 * IDLE, 2 * IDLE))


async def _sleep_on(rig: Rig) -> None:
    while True:
        await asyncio.to_thread(rig.catalogue.sleep)
        await asyncio.sleep(IDLE / 20)


async def _all_asleep(rig: Rig) -> float:
    async with asyncio.timeout(SECONDS):
        while not all(each.asleep for each in rig.catalogue.sleepers()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.to_thread(rig.catalogue.drained, SECONDS)
    return await asyncio.to_thread(_resident)


async def hammer(root: Path, crop: bytes, sleeps: int) -> Report:
    """Calls at random times until the repository's one model has been put to sleep so many times."""
    report = Report()
    draw = random.Random(0)  # noqa: S311
    with open_rig(root) as rig:
        await rig.embed(crop, aligned=True)
        report.awake = await asyncio.to_thread(_resident)
        sleeping = asyncio.create_task(_sleep_on(rig))
        for target in (MEASURED_FIRST, sleeps):
            await _call_until(target, rig, crop, draw, report)
            report.asleep[target] = await _all_asleep(rig)
        sleeping.cancel()
        (sleeper,) = rig.catalogue.sleepers()
        report.slept, report.woken = sleeper.slept, sleeper.woken
    return report


if __name__ == "__main__":
    memory.use_one_arena()
    memory.keep_imports()
    count, folder, photo = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps(asdict(asyncio.run(hammer(folder, photo.read_bytes(), count)))))
