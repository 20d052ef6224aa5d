"""The callers of a soak: good calls and bad ones, some given up, some whose process is killed."""

import asyncio
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mien.v1 import face_pb2
from tests.fuzz.inputs import FACES, SAMPLE, crowd, message_call, once_failed, photo_call
from tests.fuzz.run import UNEXPECTED, table
from tools.local_access import bearer

DEADLINE = 30.0
PHOTOS = sorted(SAMPLE.parent.glob("*.jpg"))
_PORTRAIT = face_pb2.Image(encoded=SAMPLE.read_bytes())
GOOD: tuple[tuple[str, bytes], ...] = tuple(
    (FACES + method, request.SerializeToString())
    for method, request in (
        *(
            ("Embed", face_pb2.EmbedRequest(image=face_pb2.Image(encoded=photo.read_bytes())))
            for photo in PHOTOS
        ),
        ("Detect", face_pb2.DetectRequest(image=_PORTRAIT)),
        (
            "Verify",
            face_pb2.VerifyRequest(
                a=face_pb2.Subject(image=_PORTRAIT), b=face_pb2.Subject(image=_PORTRAIT)
            ),
        ),
    )
)
CROWD = crowd()
_KINDS = (("good", 70), ("damaged", 18), ("given up", 8), ("stranger", 4))


@dataclass
class Tallied:
    """What came of the calls.

    Attributes:
        answers: calls by kind, status and reason.
        lost: good calls that were accepted and not answered, and why; the first few.
        wrong: other calls that ended as none may; the first few.
        latencies: seconds of the good calls since somebody looked last.
    """

    answers: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class Callers:
    """Calls at a steady rate, over a channel and with a credential that may be replaced while they go on.

    Args:
        channel: the first one.
        credentials: keys and tokens that hold; each call takes one by chance.
        rate: calls a second.
        seed: of the calls.
    """

    def __init__(
        self, channel: grpc.aio.Channel, credentials: list[str], rate: float, seed: int
    ) -> None:
        self.tallied = Tallied()
        self.channel, self.credentials = channel, credentials
        self._rate, self._seed = rate, seed
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._allowed = table()
        self._going: set[asyncio.Task[None]] = set()
        self._go = asyncio.Event()
        self._go.set()
        # What once held a decoder for seconds is for make fuzz: here others wait behind it.
        self._numbers = itertools.count(len(once_failed()))

    async def work(self) -> None:
        """Calls until it is cancelled."""
        due = time.monotonic()
        while True:
            await self._go.wait()
            due = max(due + self._draw.expovariate(self._rate), time.monotonic() - 1)
            await asyncio.sleep(due - time.monotonic())
            if len(self._going) < 64:  # a slow machine gets fewer calls, not a longer queue
                task = asyncio.create_task(self._call())
                self._going.add(task)
                task.add_done_callback(self._going.discard)

    async def burst(self) -> None:
        """Every good call, several at once and several times, and as many faces as a batch may hold: what a
        model that has been replaced takes to answer, it has taken after that, so that moments of rest can be
        compared."""
        for at_once in (1, 4, 8, 8):
            for first in range(0, 2 * at_once, at_once):
                calls = (GOOD[(first + n) % len(GOOD)] for n in range(at_once))
                await asyncio.gather(*(self._send("good", *call) for call in calls))
        await asyncio.gather(*(self._send("good", FACES + "Embed", CROWD) for _ in range(4)))

    async def pause(self) -> None:
        """Lets the calls in progress end, and no others begin."""
        self._go.clear()
        while self._going:
            await asyncio.wait(set(self._going))

    def resume(self) -> None:
        """Ends a pause."""
        self._go.set()

    async def _call(self) -> None:
        (kind,) = self._draw.choices([k for k, _ in _KINDS], [n for _, n in _KINDS])
        path, request = self._draw.choice(GOOD)
        if kind == "damaged":
            make = self._draw.choice((photo_call, message_call))
            path, request = make(next(self._numbers), self._seed)
        await self._send(kind, path, request)

    async def _send(self, kind: str, path: str, request: bytes) -> None:
        sent = self._draw.choice(self.credentials)
        if kind == "stranger":
            sent = sent[:-8] + "aaaaaaaa"
        untyped: Any = self.channel
        began = time.monotonic()
        call = untyped.unary_unary(path)(request, timeout=DEADLINE, metadata=bearer(sent))
        if kind == "given up":
            asyncio.get_running_loop().call_later(self._draw.uniform(0, 0.06), call.cancel)
        code, reason, said = await _ended(call)
        seconds = time.monotonic() - began
        self.tallied.answers[f"{kind}: {code} {reason}".strip()] += 1
        if kind == "good":
            self.tallied.latencies.append(seconds)
            if code != "OK" and reason != "QUEUE_FULL":  # that one was not accepted
                _note(self.tallied.lost, f"{path}: {code} {reason} {said}")
        elif not self._may_end(kind, code, reason):
            _note(self.tallied.wrong, f"{kind} {path}: {code} {reason} {said}")

    def _may_end(self, kind: str, code: str, reason: str) -> bool:
        if kind == "stranger":
            return reason == "UNAUTHENTICATED"
        if kind == "given up":
            return code in ("OK", "CANCELLED")
        return code == "OK" or (
            (code, reason) in self._allowed and reason not in UNEXPECTED | {"UNAUTHENTICATED"}
        )


def _note(lines: list[str], line: str) -> None:
    if len(lines) < 20:
        lines.append(line)


async def _ended(call: Any) -> tuple[str, str, str]:
    """Status, reason and message of a call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(cast(grpc.Call, error))
        info = error_details_pb2.ErrorInfo()
        for packed in status.details if status else ():
            if packed.Unpack(info):
                break
        return error.code().name, info.reason, error.details() or ""
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        return "CANCELLED", "", ""
    return "OK", "", ""


async def killed_process(address: str, authority: Path, key: str, after: float) -> None:
    """A process that calls on and on from several threads, ended by SIGKILL after so many seconds."""
    command = [sys.executable, "-m", "tests.soak.clients", address, str(authority)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: ASYNC220 - it does not wait
    try:
        assert process.stdin is not None
        process.stdin.write(key.encode() + b"\n")  # not where others see it, as arguments are
        process.stdin.close()
        await asyncio.sleep(after)
    finally:
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)


def _call_on(address: str, authority: bytes, key: str) -> None:
    credentials = grpc.ssl_channel_credentials(authority)
    channel = grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0)])
    calls: list[Any] = []
    for path, request in itertools.cycle(GOOD):
        method: Any = channel.unary_unary(path)
        calls.append(method.future(request, timeout=DEADLINE, metadata=bearer(key)))
        if len(calls) == 4:
            calls.pop(0).exception()


if __name__ == "__main__":
    _call_on(sys.argv[1], Path(sys.argv[2]).read_bytes(), sys.stdin.readline().strip())
