"""What it costs that a server knows its callers, and that it traces their calls, beside none of it.

    python -m bench.access_cost [--seconds 6] [--rounds 7] [--lone 60] [--parts]

Needs the installed models (`make models`). Embed of the portraits, by 8 callers in a closed loop and by a
lone one. For the first, a server with TLS, an API key and the access log, one that traces every call, and
one with nothing take turns, and those that rest are stopped. The lone caller calls them in turn, call by
call, with the same photo: the machine's moods meet all of them. The caller is on the same machine: what TLS
costs it is in the figures, too. With --parts each of the three has a server of its own, too.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from bench.peers.servers import hold, resume
from bench.peers.workloads import EMBED
from loadtest.connections import GrpcConnection, calls_of
from mien_server.load.loops import Call, closed_loop
from mien_server.load.report import machine, table
from mien_server.load.shapes import steady
from tools.local_access import LocalAccess
from tools.local_server import local_server

CALLERS = 8
WARM_UP = 1.0
MOST_LOST, MOST_LATER = 0.03, 0.3
"""Share of the throughput, and milliseconds at the median of a lone call, that all three may cost."""
MOST_LOST_TRACED = 0.05
"""Share of the throughput that tracing every call may cost."""


@dataclass(frozen=True)
class Variant:
    """What a server does of it."""

    name: str
    tls: bool = False
    key: bool = False
    log: bool = False
    traced: bool = False

    def flags(self, access: LocalAccess, collector: str) -> list[str]:
        """Its own flags of `mien-server serve`."""
        flags = ["--access-log", "true" if self.log else "false"]
        flags += access.key_flags if self.key else []
        flags += ["--otlp-endpoint", f"http://{collector}"] if self.traced else []
        return flags + (access.tls_flags if self.tls else [])


PLAIN = Variant("none of them")
ALL = Variant("TLS, key and access log", tls=True, key=True, log=True)
TRACED = Variant("every call traced", traced=True)
PARTS = (
    Variant("TLS", tls=True),
    Variant("key", key=True),
    Variant("access log", log=True),
)


@dataclass
class Measured:
    """Of one server: answers a second to 8 callers, by round, and the seconds of each lone call."""

    rates: list[float] = field(default_factory=list)
    lone: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """A server that is stopped but while it is measured."""

    process: psutil.Process
    call: Call

    async def rate(self, seconds: float) -> float:
        """Answers a second to 8 callers."""
        resume(self.process)
        try:
            load = await closed_loop(self.call, steady(CALLERS, seconds + WARM_UP), warm_up=WARM_UP)
        finally:
            hold(self.process)
        if load.tally.failures or not load.tally.latencies:
            raise SystemExit(f"calls failed: {dict(load.tally.failures)}")
        return len(load.tally.latencies) / load.seconds

    async def lone(self, number: int) -> float:
        """Seconds that one call takes."""
        began = time.perf_counter()
        await self.call(number)
        return time.perf_counter() - began


@asynccontextmanager
async def collecting() -> AsyncIterator[str]:
    """The address of a collector of traces that looks at none of them."""

    class Sink(grpc.GenericRpcHandler):
        def service(self, details: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
            del details
            return grpc.unary_unary_rpc_method_handler(self._take)

        async def _take(self, spans: bytes, context: object) -> bytes:
            del spans, context
            return b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Sink(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def held(
    variant: Variant, access: LocalAccess, collector: str, logs: Path
) -> AsyncIterator[Held]:
    trusted = access.trusted if variant.tls else None
    flags = variant.flags(access, collector)
    with local_server(logs / f"{variant.name}.log", flags=flags, trusted=trusted) as server:
        process = psutil.Process(server.process.pid)
        key = access.key if variant.key else ""
        connection = GrpcConnection(server.address, 60, credential=key, trusted=trusted)
        hold(process)
        try:
            yield Held(process, calls_of(connection, EMBED.path, EMBED.requests))
        finally:
            resume(process)
            await connection.close()


async def measure(
    variants: Sequence[Variant], *, seconds: float, rounds: int, lone: float
) -> dict[Variant, Measured]:
    """The rates in turn, in every other round the other way round; then lone calls for `lone` seconds."""
    found = {variant: Measured() for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        access = LocalAccess(Path(folder))
        async with AsyncExitStack() as stack:
            collector = await stack.enter_async_context(collecting())
            servers = [
                (
                    variant,
                    await stack.enter_async_context(held(variant, access, collector, Path(folder))),
                )
                for variant in variants
            ]
            for number in range(rounds):
                for variant, server in servers if number % 2 == 0 else reversed(servers):
                    found[variant].rates.append(await server.rate(seconds))
            for _, server in servers:
                resume(server.process)
            order = random.Random(1)
            ends = time.perf_counter() + WARM_UP + lone
            number = 0
            while time.perf_counter() < ends:
                for variant, server in order.sample(servers, len(servers)):
                    took = await server.lone(number)
                    if time.perf_counter() > ends - lone:
                        found[variant].lone.append(took)
                number += 1
    return found


def lost(plain: Measured, other: Measured) -> list[float]:
    """By round: the share of the throughput lost."""
    return [1 - ours / theirs for ours, theirs in zip(other.rates, plain.rates, strict=True)]


def later(plain: Measured, other: Measured) -> list[float]:
    """Of each lone call: the milliseconds that it takes longer than the same call to the plain server."""
    return [1e3 * (ours - theirs) for ours, theirs in zip(other.lone, plain.lone, strict=False)]


def report(found: dict[Variant, Measured]) -> str:
    """A table: a line for each server."""
    rows = []
    for variant, measured in found.items():
        rate, alone = statistics.median(measured.rates), 1e3 * statistics.median(measured.lone)
        costs: tuple[str, ...] = ("", "", "", "")
        if variant is not PLAIN:
            gone, wait = lost(found[PLAIN], measured), later(found[PLAIN], measured)
            low, middle, high = statistics.quantiles(wait, n=4)
            costs = (
                f"{statistics.median(gone):.1%}",
                f"{min(gone):.1%} to {max(gone):.1%}",
                f"{middle:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
            )
        rows.append((variant.name, f"{rate:.1f}", *costs[:2], f"{alone:.2f}", *costs[2:]))
    header = (
        *("with", f"calls/s, {CALLERS} callers", "lost", "over the rounds"),
        *("median ms, alone", "later by ms", "half of the calls"),
    )
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of each load [6]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lone", type=float, default=60, help="seconds of lone calls [60]")
    parser.add_argument("--parts", action="store_true", help="each of the three alone, too")
    options = parser.parse_args()
    print(machine())
    variants = (PLAIN, *(PARTS if options.parts else ()), ALL, TRACED)
    found = asyncio.run(
        measure(variants, seconds=options.seconds, rounds=options.rounds, lone=options.lone)
    )
    print(report(found))
    plain = found[PLAIN]
    three, traced = (statistics.median(lost(plain, found[each])) for each in (ALL, TRACED))
    wait = statistics.median(later(plain, found[ALL]))
    kept = three <= MOST_LOST and wait <= MOST_LATER and traced <= MOST_LOST_TRACED
    print(
        f"\nall three cost {three:.1%} of the throughput (at most {MOST_LOST:.0%}) and {wait:+.2f} ms of a"
        f" lone call (at most {MOST_LATER:g}), tracing {traced:.1%} (at most {MOST_LOST_TRACED:.0%}):"
        f" {'kept' if kept else 'NOT kept'}"
    )


if __name__ == "__main__":
    main()
