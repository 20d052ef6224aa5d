"""Runs the cells: compares answers first, then lets the servers take turns."""

import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from psutil import Process

from bench.peers.plan import OPEN_LOADS, Plan
from bench.peers.servers import (
    MIEN,
    Peer,
    Server,
    cpu_seconds,
    hold,
    mien_running,
    peer_running,
    resume,
)
from bench.peers.setup import CannotRun
from bench.peers.triton import DIMENSIONS, ENGINES, analyse, infer, triton_running
from bench.peers.workloads import EMBED, AnswersDiffer, Workload, agreement, cosine, crops
from mien_server.load.loops import CallFailed, Load, closed_loop, open_loop
from mien_server.load.shapes import arrivals, steady

MIEN_LOAD = "80 % of mien's peak"


@dataclass(frozen=True)
class Cell:
    """One measurement of one server.

    Attributes:
        server: whose.
        load: callers of a closed loop as a number, or what an open one sends.
        rate: right answers a second.
        p50_ms: milliseconds within which half of them came; NaN if there are none.
        p99_ms: and 99 of 100.
        server_cores: processor cores that the server kept busy.
        generator_cores: and the generator; 0 where that is perf_analyzer.
        offered: calls a second that an open loop sent; 0 for a closed one.
        late_ms: 99th percentile of how late it sent them.
        queue_ms: median time in mien's queues; None if the server tells none.
        batch: mean rows of mien's batches; likewise.
        failures: how many calls failed for each reason.
    """

    server: str
    load: str
    rate: float
    p50_ms: float
    p99_ms: float
    server_cores: float
    generator_cores: float = 0.0
    offered: float = 0.0
    late_ms: float = 0.0
    queue_ms: float | None = None
    batch: float | None = None
    failures: dict[str, int] = field(default_factory=dict)


@dataclass
class Results:
    """All of a run.

    Attributes:
        closed: the closed loops, by workload; several of one server and load are its rounds.
        opened: the open loops of Embed.
        analysed: perf_analyzer's closed loops, by network.
        agreement: how well each server's answers agree with mien's at worst, by workload.
        missing: what was not run, and why.
    """

    closed: dict[str, list[Cell]] = field(default_factory=dict)
    opened: list[Cell] = field(default_factory=list)
    analysed: dict[str, list[Cell]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def miss(self, what: str) -> None:
        """Notes what was not run."""
        if what not in self.missing:
            self.missing.append(what)
            say(f"not run: {what}")

    def peak(self, server: str) -> float:
        """The server's best rate in Embed's closed loops, by the medians of its rounds; 0 if it has none."""
        rates: dict[str, list[float]] = defaultdict(list)
        for cell in self.closed.get(EMBED.key, ()):
            if cell.server == server:
                rates[cell.load].append(cell.rate)
        return max((statistics.median(rounds) for rounds in rates.values()), default=0.0)


def say(text: str) -> None:
    """Tells the person who waits."""
    print(text, file=sys.stderr, flush=True)


class Measurement:
    """One run.

    Args:
        plan: its cells.
        peers: whom to compare with, beside Triton.
        logs: where the servers' logs go.
        least: how well answers must agree with mien's.
    """

    def __init__(self, plan: Plan, peers: Sequence[Peer], logs: Path, least: float) -> None:
        self.results = Results()
        self._plan, self._peers, self._logs, self._least = plan, peers, logs, least

    async def run(self) -> None:
        """Measures everything; what cannot be had is noted and left out."""
        # Servers that only embed photos are gone when the others go on with the rest.
        for _, group in groupby(self._plan.workloads, lambda w: (w.canvas, w.jpegs is None)):
            workloads = list(group)
            if not self._is_late():
                await self._on_canvas(workloads[0].canvas, workloads)
        if self._plan.analyse and not self._is_late():
            try:
                await self._analyse()
            except CannotRun as error:
                self.results.miss(f"Triton: {error}")

    async def _on_canvas(self, canvas: int, workloads: Sequence[Workload]) -> None:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(mien_running(canvas, self._logs))]
            hold(servers[0].process)
            for peer in self._peers:
                if not any(peer.can(workload) for workload in workloads):
                    continue
                try:
                    server = await stack.enter_async_context(peer_running(peer, canvas, self._logs))
                except CannotRun as error:
                    self.results.miss(f"{peer.name}: {error}")
                else:
                    hold(server.process)
                    servers.append(server)
            for workload in workloads:
                agreed = await self._agreeing(servers, workload)
                await self._closed_loops(agreed, workload)
                if workload is EMBED:
                    await self._open_loops(agreed)

    async def _agreeing(self, servers: Sequence[Server], workload: Workload) -> list[Server]:
        """Those that can do it and give mien's answer to every request."""
        expected: list[bytes] = []
        agreed = []
        for server in servers:
            if not server.can(workload):
                continue
            worst = 1.0
            try:
                with server.running():
                    for number in range(len(workload.requests)):
                        answer = await server.answer(workload, number)
                        if server.name == MIEN:
                            expected.append(answer)
                        found = agreement(workload, expected[number], answer, self._least)
                        worst = min(worst, found)
            except (CallFailed, AnswersDiffer) as error:
                self.results.miss(f"{server.name}: {error} ({workload.title})")
                continue
            self.results.agreement.setdefault(workload.key, {})[server.name] = worst
            agreed.append(server)
        return agreed

    async def _closed_loops(self, servers: Sequence[Server], workload: Workload) -> None:
        plan = self._plan
        for callers in plan.callers(workload):
            say(f"{workload.title}: {callers} callers")
            for number in range(plan.rounds(workload)):
                # Nobody always comes after the same neighbour.
                for server in (*servers[number:], *servers[:number]):
                    if self._is_late():
                        return
                    with _cores(server) as cores:
                        load = await closed_loop(
                            server.calls(workload),
                            steady(callers, plan.cell),
                            warm_up=plan.warm_up,
                        )
                    self.results.closed.setdefault(workload.key, []).append(
                        _cell(server, str(callers), load, cores[0])
                    )

    async def _open_loops(self, servers: Sequence[Server]) -> None:
        for share in OPEN_LOADS:
            for server in servers:
                if self._is_late():
                    return
                name = MIEN_LOAD if share is None else f"{share * 100:.0f} % of its own peak"
                peak = self.results.peak(MIEN if share is None else server.name)
                rate = peak * (0.8 if share is None else share)
                if not rate:
                    continue
                say(f"{EMBED.title}, open loop, {name}: {server.name}, {rate:.0f}/s")
                dues = list(arrivals(steady(rate, self._plan.open_seconds), random.Random(0)))
                with _cores(server) as cores:
                    load = await open_loop(server.calls(EMBED), dues)
                self.results.opened.append(_cell(server, name, load, cores[0], offered=rate))

    async def _analyse(self) -> None:
        async with mien_running(320, self._logs) as mien:
            with triton_running(self._logs) as (triton, process):
                for network in DIMENSIONS:
                    # mien's own model answers on Triton's protocol, too.
                    targets = {MIEN: (mien.address, network, mien.process)}
                    for engine in ENGINES:
                        name = f"Triton, {engine}"
                        targets[name] = (triton, f"{network}_{engine}", process)
                    self._compare_crops(network, targets)
                    for callers in self._plan.analysed_callers():
                        say(f"perf_analyzer, {network}: {callers} callers")
                        for name, (address, model, root) in targets.items():
                            if self._is_late():
                                return
                            if name != MIEN:
                                hold(mien.process)
                            began, taken = time.monotonic(), cpu_seconds(root)
                            found = analyse(address, model, callers, self._plan.analysis_seconds)
                            taken = cpu_seconds(root) - taken
                            resume(mien.process)
                            self.results.analysed.setdefault(network, []).append(
                                Cell(name, str(callers), *found, taken / (time.monotonic() - began))
                            )

    def _compare_crops(self, network: str, targets: dict[str, tuple[str, str, Process]]) -> None:
        """Drops targets whose embeddings are not mien's."""
        expected = [infer(*targets[MIEN][:2], crop) for crop in crops()]
        for name, target in list(targets.items()):
            vectors = [infer(*target[:2], crop) for crop in crops()]
            worst = min(cosine(a, b) for a, b in zip(expected, vectors, strict=True))
            self.results.agreement.setdefault(f"perf_analyzer, {network}", {})[name] = worst
            if not worst >= self._least:
                self.results.miss(f"{name}: {network} agrees with mien's by {worst:.4f} only")
                del targets[name]

    def _is_late(self) -> bool:
        if self._plan.is_over:
            self.results.miss("what the time did not suffice for: raise --minutes")
        return self._plan.is_over


@contextmanager
def _cores(server: Server) -> Iterator[list[float]]:
    """Lets a server run; the list has the cores that it kept busy, once the block is over."""
    cores: list[float] = []
    with server.running():
        began, taken = time.monotonic(), cpu_seconds(server.process)
        yield cores
        cores.append((cpu_seconds(server.process) - taken) / (time.monotonic() - began))


def _cell(server: Server, name: str, load: Load, cores: float, *, offered: float = 0.0) -> Cell:
    found = load.tally.summary(load.seconds)
    return Cell(
        server=server.name,
        load=name,
        rate=found.rate,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        server_cores=cores,
        generator_cores=load.cpu / load.seconds,
        offered=offered,
        late_ms=float(np.percentile(load.late, 99)) * 1e3 if load.late else 0.0,
        queue_ms=found.queue_ms,
        batch=found.batch,
        failures=dict(found.failures),
    )
