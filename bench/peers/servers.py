"""Starts mien and its peers, side by side on one machine, and lets one of them run at a time."""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.peers.setup import GRAPHS, ROOT, CannotRun, python_of, repository_for
from bench.peers.workloads import EMBED, Workload
from loadtest.connections import Connection, GrpcConnection, HttpConnection, calls_of
from mien_server.load.loops import Call, CallFailed
from tools.local_server import free_port, local_server

MIEN = "mien"
CALL_SECONDS = 10.0
_START_SECONDS = 180.0
_END_SECONDS = 15.0
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # or Ray writes a token into the home folder
    "RAY_worker_niceness": "0",  # or the load would take the cores away from Ray's replicas
}


@dataclass(frozen=True)
class Peer:
    """A server by hand.

    Attributes:
        name: in tables.
        environment: of `setup.ENVIRONMENTS`.
        module: in bench.peers.by_hand.
        flags: of its own.
        photos_only: whether it embeds photos and does nothing else.
        http: whether it speaks HTTP: a JPEG to /embed, JSON back.
    """

    name: str
    environment: str
    module: str
    flags: tuple[str, ...] = ()
    photos_only: bool = False
    http: bool = False

    def can(self, workload: Workload) -> bool:
        """Whether it knows this kind of request."""
        return workload.jpegs is not None or not self.photos_only


PEERS = (
    Peer("OpenVINO, latency", "threads", "openvino_threads", ("--hint", "LATENCY")),
    Peer("OpenVINO, throughput", "threads", "openvino_threads", ("--hint", "THROUGHPUT")),
    Peer("onnxruntime", "threads", "onnxruntime_threads"),
    Peer("LitServe", "litserve", "litserve_batched", photos_only=True, http=True),
    Peer("Ray Serve", "ray", "ray_batched", photos_only=True),
)


@dataclass(frozen=True)
class Server:
    """A server that runs, or is held.

    Attributes:
        name: in tables.
        process: its first process.
        connection: to it.
        address: host:port.
        peer: what it is; None for mien.
    """

    name: str
    process: psutil.Process
    connection: Connection
    address: str
    peer: Peer | None = None

    def can(self, workload: Workload) -> bool:
        """Whether it knows this kind of request."""
        return self.peer is None or self.peer.can(workload)

    def calls(self, workload: Workload) -> Call:
        """Its calls of a workload."""
        return calls_of(self.connection, *self._wire(workload))

    async def answer(self, workload: Workload, number: int) -> bytes:
        """To one request."""
        path, requests = self._wire(workload)
        return (await self.connection.send(path, requests[number]))[0]

    def _wire(self, workload: Workload) -> tuple[str, list[bytes]]:
        if self.peer and self.peer.http and workload.jpegs is not None:
            return "/embed", workload.jpegs()
        return workload.path, workload.requests

    @contextmanager
    def running(self) -> Iterator[None]:
        """Lets it run for the length of a block: a server at rest must not take time from another."""
        resume(self.process)
        try:
            yield
        finally:
            hold(self.process)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that descend from it."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def cpu_seconds(process: psutil.Process) -> float:
    """Processor seconds of it and all that descends from it, so far."""
    return sum(sum(one.cpu_times()[:2]) for one in tree(process))


def hold(process: psutil.Process) -> None:
    """Stops all its processes where they are."""
    for one in tree(process):
        with suppress(psutil.NoSuchProcess):
            one.suspend()


def resume(process: psutil.Process) -> None:
    """Lets them go on."""
    for one in reversed(tree(process)):
        with suppress(psutil.NoSuchProcess):
            one.resume()


@contextmanager
def started(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """A program for the length of a block; at its end it and all that descends from it is gone."""
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command,
            stdout=sink,
            stderr=sink,
            cwd=ROOT,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **environment},
        ) as popen,
    ):
        process = psutil.Process(popen.pid)
        try:
            yield process
        finally:
            everyone = tree(process)
            resume(process)
            popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                popen.wait(_END_SECONDS)
            for one in psutil.wait_procs(everyone, timeout=3)[1]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


@asynccontextmanager
async def mien_running(canvas: int, logs: Path) -> AsyncIterator[Server]:
    """The mien server with its defaults, on this canvas."""
    flags = ["--model-repository", str(repository_for(canvas))]
    with local_server(logs / "mien.log", flags=flags) as local:
        connection = GrpcConnection(local.address, CALL_SECONDS)
        server = Server(MIEN, psutil.Process(local.process.pid), connection, local.address)
        try:
            yield server
        finally:
            resume(server.process)
            await server.connection.close()


@asynccontextmanager
async def peer_running(peer: Peer, canvas: int, logs: Path) -> AsyncIterator[Server]:
    """A peer on this canvas, once it has answered its first call.

    Raises:
        CannotRun: its environment could not be made, it ended, or it did not answer in time.
    """
    port = free_port()
    command = [str(python_of(peer.environment)), "-m", f"bench.peers.by_hand.{peer.module}"]
    command += ["--port", str(port), "--graphs", str(GRAPHS), "--canvas", str(canvas), *peer.flags]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "client")))
    log = logs / f"{peer.name.replace(', ', '-').replace(' ', '-').lower()}.log"
    with started(command, log, {"PYTHONPATH": paths, **_ALONE}) as process:
        connection: Connection = (
            HttpConnection("127.0.0.1", port, CALL_SECONDS)
            if peer.http
            else GrpcConnection(f"127.0.0.1:{port}", CALL_SECONDS)
        )
        server = Server(peer.name, process, connection, f"127.0.0.1:{port}", peer)
        try:
            await _until_ready(server, log)
            yield server
        finally:
            await connection.close()


async def _until_ready(server: Server, log: Path) -> None:
    give_up = time.monotonic() + _START_SECONDS
    reason = "it ended"
    while server.process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < give_up:
        try:
            await server.answer(EMBED, 0)
        except CallFailed as error:
            reason = str(error)
            await asyncio.sleep(0.5)
        else:
            return
    raise CannotRun(f"it did not start ({reason}): see {log}")
