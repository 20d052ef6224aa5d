"""Keeps a server busy for a while, changes everything about it that may change, and watches what it holds."""

import asyncio
import shutil
import socket
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mien_server.load.report import percentile
from tests.integration.repository_rig import write_variant
from tests.soak.clients import Callers, Tallied, killed_process
from tools.local_access import LocalAccess, bearer
from tools.local_server import LocalServer

PARTS = 12
"""Into how many parts a soak falls. At the end of each the server rests, and what it holds is noted."""

SETTLED = 2
"""After how many of them, a sixth of the time, nothing may grow any more."""

GROWTH = 0.02
"""By what share the memory of each rest from then on may differ from their median."""

MOST_REFUSED = 0.01
"""Share of the good calls that may be refused because the queues are full, as on a machine that is shared."""

SLACK = 3
"""By how many threads, and descriptors, the server at rest may differ: a connection that ends, and such."""

STEADY_MINUTES = 10.0
"""How long a soak must be for its memory to be judged: in a shorter one hardly any part is long enough."""

REST_SECONDS = 6.0
QUIET_SECONDS = 30.0
"""Before a rest nothing is changed for so long, if the part is that long."""

READ_AGAIN_SECONDS = 4.0
"""Within which the server surely has read its files again."""

MIB = 2**20


@dataclass(frozen=True)
class Held:
    """What the server holds at a moment.

    Attributes:
        minutes: since the start.
        mib: of memory.
        threads: how many.
        descriptors: how many files and connections are open.
        milliseconds: within which half of the good calls were answered since the last look; 0: none were.
    """

    minutes: float
    mib: float
    threads: int
    descriptors: int
    milliseconds: float = 0.0


@dataclass
class Soak:
    """What a soak has shown.

    Attributes:
        looks: every few seconds, under load.
        rests: at the end of each part, without load.
        changes: what was done meanwhile, and how often.
        tallied: the calls.
        wrong: what should not have been.
    """

    tallied: Tallied
    looks: list[Held] = field(default_factory=list)
    rests: list[Held] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def judged(self) -> list[str]:
        """All that is wrong with it."""
        found = [*self.wrong, *self.tallied.wrong]
        found += [f"lost: {each}" for each in self.tallied.lost]
        if len(self.rests) < PARTS:
            return [*found, f"it ended after {len(self.rests)} of {PARTS} parts"]
        refused = self.tallied.answers["good: RESOURCE_EXHAUSTED QUEUE_FULL"]
        if refused > MOST_REFUSED * (refused + self.tallied.answers["good: OK"]):
            found.append(f"{refused} good calls were refused at the door")
        first, later = self.rests[SETTLED - 1], self.rests[SETTLED:]
        held = [each.mib for each in (first, *later)]
        usual = statistics.median(held)
        worst = max(held, key=lambda mib: abs(mib / usual - 1))
        if self.rests[-1].minutes > STEADY_MINUTES and abs(worst / usual - 1) > GROWTH:
            found.append(f"memory: {usual:.0f} MiB at most rests, {worst:.0f} at one")
        for name in ("threads", "descriptors"):
            begun, most = getattr(first, name), max(getattr(each, name) for each in later)
            if most > begun + SLACK:
                found.append(f"{name}: {begun} at first, {most} later")
        return found


def prepared(source: Path, folder: Path) -> Path:
    """A copy of the installed models that may be written to."""
    for name in ("retinaface", "sface"):
        shutil.copytree(source / name, folder / name)
    return folder


class Changes:
    """All that may be replaced while a server runs.

    Args:
        repository: of the server; sface in it is replaced by weights that differ a little.
    """

    def __init__(
        self, server: LocalServer, access: LocalAccess, repository: Path, callers: Callers
    ) -> None:
        self._server, self._access, self._callers = server, access, callers
        self._version = repository / "sface" / "1"
        self._weights = cycle(
            write_variant(self._version, repository.parent / f"variant-{factor}", factor)
            for factor in (1.0001, 0.9999)
        )
        self._keys: list[str] = []
        self._authority = access.folder / "ca.pem"
        self._authority.write_bytes(access.trusted)

    async def model(self) -> None:
        """Other weights for sface."""
        for file in next(self._weights).iterdir():
            shutil.copy(file, self._version / file.name)
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._callers.channel)
        request = service_pb2.RepositoryModelLoadRequest(model_name="sface")
        await stub.RepositoryModelLoad(request, timeout=60, metadata=bearer(self._access.key))

    async def certificate(self) -> None:
        """Another certificate, which new connections must be shown; the callers take one."""
        pem = self._access.renew()
        wanted = ssl.PEM_cert_to_DER_cert(pem.decode())
        async with asyncio.timeout(30):
            while await asyncio.to_thread(self._shown) != wanted:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.2)
        old, self._callers.channel = self._callers.channel, open_async(self._server, self._access)
        await old.close(grace=60)

    def _shown(self) -> bytes | None:
        host, _, port = self._server.address.rpartition(":")
        context = ssl.create_default_context(cadata=self._access.trusted.decode())
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)

    async def key(self) -> None:
        """Another key for the callers, and the one before the last is revoked."""
        key_id, key = self._access.add_key("soak")
        await asyncio.sleep(READ_AGAIN_SECONDS)
        self._callers.credentials[0] = key
        self._keys.append(key_id)
        if len(self._keys) > 1:
            await asyncio.sleep(READ_AGAIN_SECONDS)
            self._access.revoke_key(self._keys.pop(0))

    async def token(self) -> None:
        """Another token."""
        self._callers.credentials[1] = self._access.token()

    async def process(self) -> None:
        """A client's process that is killed in the midst of its calls."""
        await killed_process(self._server.address, self._authority, self._access.key, 6.0)


def open_async(server: LocalServer, access: LocalAccess) -> grpc.aio.Channel:
    """A channel to the server with a connection of its own."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(server.address, access.credentials(), options)


async def soak(
    server: LocalServer,
    access: LocalAccess,
    repository: Path,
    *,
    seconds: float,
    rate: float,
    seed: int,
) -> Soak:
    """Calls and changes for so many seconds, rests included.

    Args:
        access: what the server knows its callers by, and its certificate.
        repository: where its models are; written to.
        rate: calls a second.
    """
    began = time.monotonic()
    process = psutil.Process(server.process.pid)
    credentials = [access.key, access.token()]
    callers = Callers(open_async(server, access), credentials, rate, seed)
    found = Soak(callers.tallied)
    changes = Changes(server, access, repository, callers)

    def look() -> Held:
        latencies = callers.tallied.latencies
        median = percentile(latencies, 0.5) * 1e3 if latencies else 0.0
        latencies.clear()
        minutes = (time.monotonic() - began) / 60
        with process.oneshot():
            mib = process.memory_info().rss / MIB
            return Held(minutes, mib, process.num_threads(), process.num_fds(), median)

    async def watch() -> None:
        while True:
            await asyncio.sleep(max(1.0, seconds / 360))
            found.looks.append(look())

    calling = asyncio.create_task(callers.work())
    watching = asyncio.create_task(watch())
    turns = _turns(changes)
    try:
        for part in range(1, PARTS + 1):
            ends = began + seconds * part / PARTS - REST_SECONDS
            first = True
            while first or time.monotonic() < ends - QUIET_SECONDS:
                first = False
                name, change = next(turns)
                try:
                    await change()
                except (grpc.aio.AioRpcError, TimeoutError, OSError) as error:
                    found.wrong.append(f"{name}: {error!r}")
                found.changes[name] = found.changes.get(name, 0) + 1
                await asyncio.sleep(min(5.0, max(0.0, ends - time.monotonic())))
            await asyncio.sleep(max(0.0, ends - time.monotonic()))
            if server.process.poll() is not None or calling.done():
                found.wrong.append("the server or the callers ended")
                break
            await callers.pause()
            await callers.burst()
            await asyncio.sleep(REST_SECONDS)
            found.rests.append(look())
            callers.resume()
        stub: Any = health_pb2_grpc.HealthStub(callers.channel)
        state = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        if state.status != health_pb2.HealthCheckResponse.SERVING:
            found.wrong.append("health is not SERVING at the end")
    finally:
        for task in (calling, watching):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await callers.pause()
        await callers.channel.close()
    lines = server.log.read_text(errors="replace").splitlines()
    found.wrong += [line for line in lines if "CRITICAL" in line or "Traceback" in line][:5]
    return found


def _turns(changes: Changes) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """The changes by name, in turn, without end."""
    all_of_them: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = (
        ("models replaced", changes.model),
        ("client processes killed", changes.process),
        ("certificates replaced", changes.certificate),
        ("models replaced", changes.model),
        ("keys replaced", changes.key),
        ("tokens replaced", changes.token),
    )
    return cycle(all_of_them)
