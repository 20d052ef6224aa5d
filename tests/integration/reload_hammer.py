"""A process that replaces a model while callers hammer Embed, and reports what they saw, as JSON.

    python -m tests.integration.reload_hammer RELOADS REPOSITORY PHOTO...

It is a process of its own, so that its memory is that of a server and not of everything tested before.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

import psutil

from mien_server.backends import memory
from mien_server.errors import Unmet
from tests.integration.repository_rig import SECONDS, Rig, open_rig, write_variant

CALLERS = 16
MEASURED = (5, 50)


@dataclass
class Report:
    """What happened.

    Attributes:
        answers: calls answered.
        failures: calls that were not, by their errors.
        strangers: answers from a version that was not ready when the call began.
        served: versions of the weights that answered.
        loads: of each kind, how often it was loaded and how often it was refused.
        resident: MiB after some of the reloads.
    """

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    loads: dict[str, list[int]] = field(default_factory=dict)
    resident: dict[int, float] = field(default_factory=dict)


class Changes:
    """What an operator may do to a version folder, well or badly, between two loads."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "sface" / "1"
        self._config = root / "sface" / "config.pbtxt"
        self._text = self._config.read_text()
        self._variants = cycle(
            write_variant(self._folder, root.parent / f"variant-{factor}", factor)
            for factor in (1.0001, 0.9999)
        )

    def restore(self) -> None:
        """Whole files, of other weights than the last ones."""
        self._config.write_text(self._text)
        for file in next(self._variants).iterdir():
            shutil.copy(file, self._folder / file.name)

    def good(self) -> None:
        """Leaves it at that."""

    def slow(self) -> None:
        """More warm-ups."""
        samples = self._text[self._text.index("model_warmup") :]
        self._config.write_text(
            self._text + samples.replace("batch_size: 4", "batch_size: 4 count: 2")
        )

    def broken(self) -> None:
        """A network that does not compute what the config says."""
        self._config.write_text(self._text.replace("dims: [ 128 ]", "dims: [ 64 ]"))

    def corrupted(self) -> None:
        """A byte that is not what the manifest says."""
        with (self._folder / "model.safetensors").open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"\x7f")

    def half_copied(self) -> None:
        """The manifest of the whole, and half of the weights."""
        weights = self._folder / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)


class Hammer:
    """Callers that call on until they are stopped, and can be made to pause."""

    def __init__(self, rig: Rig, photos: Sequence[bytes], report: Report) -> None:
        self._rig = rig
        self._report = report
        self._go = asyncio.Event()
        self._calls = asyncio.Semaphore(CALLERS)
        self._answered = asyncio.Event()
        self._stopped = False
        self._go.set()
        self._callers = [
            asyncio.create_task(self._call_on([*photos[n % 6 :], *photos[: n % 6]]))
            for n in range(CALLERS)
        ]

    async def answer(self) -> None:
        """Waits for the next answer."""
        self._answered.clear()
        await asyncio.wait_for(self._answered.wait(), SECONDS)

    async def pause(self) -> None:
        """Lets the calls in progress end."""
        self._go.clear()
        for _ in range(CALLERS):
            await self._calls.acquire()

    def resume(self) -> None:
        """Ends a pause."""
        for _ in range(CALLERS):
            self._calls.release()
        self._go.set()

    async def stop(self) -> None:
        """Ends for good."""
        self._stopped = True
        await asyncio.gather(*self._callers)

    async def _call_on(self, photos: Sequence[bytes]) -> None:
        report = self._report
        for photo in cycle(photos):
            if self._stopped:
                return
            await self._go.wait()
            async with self._calls:
                statuses = self._rig.catalogue.statuses()
                ready = {status.model.fingerprint for status in statuses if status.model}
                try:
                    fingerprint = (await self._rig.embed(photo)).model.fingerprint
                except Exception as error:  # whatever a caller would have been told
                    report.failures.append(repr(error))
                    continue
            report.answers += 1
            if fingerprint not in report.served:
                report.served.append(fingerprint)
            if fingerprint not in ready:
                report.strangers.append(fingerprint)
            self._answered.set()


async def hammer(root: Path, photos: Sequence[bytes], reloads: int) -> Report:
    """Reloads under load, so many times."""
    report = Report()
    changes = Changes(root)
    kinds: list[Callable[[], None]] = [
        *(changes.good, changes.broken, changes.slow, changes.corrupted, changes.half_copied)
    ]
    with open_rig(root) as rig:
        calls = Hammer(rig, photos, report)
        await calls.answer()
        for number, kind in zip(range(1, reloads + 1), cycle(kinds), strict=False):
            await asyncio.to_thread(changes.restore)
            await asyncio.to_thread(kind)
            outcome = report.loads.setdefault(kind.__name__, [0, 0])
            try:
                await asyncio.wrap_future(rig.loader.load("sface"))
                outcome[0] += 1
                # Calls that began before still answer from the old weights: wait for one that did not.
                while rig.catalogue.resolve("sface", 1).fingerprint not in report.served:
                    await calls.answer()
            except Unmet:
                outcome[1] += 1
            await calls.answer()
            if number in MEASURED:
                await calls.pause()
                await asyncio.to_thread(rig.catalogue.drained, SECONDS)
                await asyncio.to_thread(memory.release)
                report.resident[number] = psutil.Process().memory_info().rss / 2**20
                calls.resume()
        await calls.stop()
    return report


if __name__ == "__main__":
    memory.use_one_arena()
    memory.keep_imports()
    folder, *names = map(Path, sys.argv[2:])
    found = asyncio.run(hammer(folder, [name.read_bytes() for name in names], int(sys.argv[1])))
    print(json.dumps(asdict(found)))
