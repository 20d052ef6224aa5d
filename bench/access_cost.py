"""What it costs that a server knows its callers: TLS, an API key and the access log, beside none of them.

    python -m bench.access_cost [--seconds 6] [--rounds 7] [--parts]

Needs the installed models (`make models`). Embed of the portraits, by 8 callers in a closed loop and by a
lone one. A server with all three and one with nothing take turns, and the one that rests is stopped. The
caller is on the same machine: what TLS costs it is in the figures, too. With --parts each of the three has a
server of its own, too.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.peers.servers import hold, resume
from bench.peers.workloads import EMBED
from loadtest.connections import GrpcConnection, calls_of
from mien_server.load.loops import closed_loop
from mien_server.load.report import machine, table
from mien_server.load.shapes import steady
from tools.local_access import LocalAccess
from tools.local_server import local_server

CALLERS = 8
WARM_UP = 1.0
MOST_LOST, MOST_LATER = 0.03, 0.3
"""Share of the throughput, and milliseconds at the median of a lone call, that all three may cost."""


@dataclass(frozen=True)
class Variant:
    """What a server does of it."""

    name: str
    tls: bool = False
    key: bool = False
    log: bool = False

    def flags(self, access: LocalAccess) -> list[str]:
        """Its own flags of `mien-server serve`."""
        flags = ["--access-log", "true" if self.log else "false"]
        flags += access.key_flags if self.key else []
        return flags + (access.tls_flags if self.tls else [])


PLAIN = Variant("none of them")
ALL = Variant("TLS, key and access log", tls=True, key=True, log=True)
PARTS = (
    Variant("TLS", tls=True),
    Variant("key", key=True),
    Variant("access log", log=True),
)


@dataclass
class Measured:
    """Of one server, by round: answers a second to 8 callers, and median milliseconds of a lone call."""

    rates: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """A server that is stopped but while it is measured."""

    process: psutil.Process
    connection: GrpcConnection

    async def measure(self, seconds: float, into: Measured) -> None:
        calls = calls_of(self.connection, EMBED.path, EMBED.requests)
        resume(self.process)
        try:
            for callers in (CALLERS, 1):
                load = await closed_loop(calls, steady(callers, seconds + WARM_UP), warm_up=WARM_UP)
                tally = load.tally
                if tally.failures or not tally.latencies:
                    raise SystemExit(f"calls failed: {dict(tally.failures)}")
                if callers > 1:
                    into.rates.append(len(tally.latencies) / load.seconds)
                else:
                    into.medians.append(1e3 * statistics.median(tally.latencies))
        finally:
            hold(self.process)


@asynccontextmanager
async def held(variant: Variant, access: LocalAccess, logs: Path) -> AsyncIterator[Held]:
    trusted = access.trusted if variant.tls else None
    log = logs / f"{variant.name}.log"
    with local_server(log, flags=variant.flags(access), trusted=trusted) as server:
        process = psutil.Process(server.process.pid)
        key = access.key if variant.key else ""
        connection = GrpcConnection(server.address, 60, credential=key, trusted=trusted)
        hold(process)
        try:
            yield Held(process, connection)
        finally:
            resume(process)
            await connection.close()


async def measure(
    variants: Sequence[Variant], seconds: float, rounds: int
) -> dict[Variant, Measured]:
    """All of them in turn, in every other round the other way round."""
    found = {variant: Measured() for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        access = LocalAccess(Path(folder))
        async with AsyncExitStack() as stack:
            servers = [
                (variant, await stack.enter_async_context(held(variant, access, Path(folder))))
                for variant in variants
            ]
            for number in range(rounds):
                for variant, server in servers if number % 2 == 0 else reversed(servers):
                    await server.measure(seconds, found[variant])
    return found


def costs(plain: Measured, other: Measured) -> tuple[list[float], list[float]]:
    """By round: the share of the throughput lost, and the milliseconds that a lone call takes longer."""
    lost = [1 - ours / theirs for ours, theirs in zip(other.rates, plain.rates, strict=True)]
    later = [ours - theirs for ours, theirs in zip(other.medians, plain.medians, strict=True)]
    return lost, later


def report(found: dict[Variant, Measured]) -> str:
    """A table: a line for each server."""
    rows = []
    for variant, measured in found.items():
        lost, later = costs(found[PLAIN], measured)
        rows.append(
            (
                variant.name,
                f"{statistics.median(measured.rates):.1f}",
                "" if variant is PLAIN else f"{statistics.median(lost):.1%}",
                "" if variant is PLAIN else f"{min(lost):.1%} to {max(lost):.1%}",
                f"{statistics.median(measured.medians):.2f}",
                "" if variant is PLAIN else f"{statistics.median(later):+.2f}",
                "" if variant is PLAIN else f"{min(later):+.2f} to {max(later):+.2f}",
            )
        )
    header = (
        *("with", f"calls/s, {CALLERS} callers", "lost", "over the rounds"),
        *("median ms, alone", "later by ms", "over the rounds"),
    )
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of each load [6]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", action="store_true", help="each of the three alone, too")
    options = parser.parse_args()
    print(machine())
    variants = (PLAIN, *(PARTS if options.parts else ()), ALL)
    found = asyncio.run(measure(variants, options.seconds, options.rounds))
    print(report(found))
    lost, later = (statistics.median(each) for each in costs(found[PLAIN], found[ALL]))
    kept = lost <= MOST_LOST and later <= MOST_LATER
    print(
        f"\nall three cost {lost:.1%} of the throughput (at most {MOST_LOST:.0%}) and {later:+.2f} ms of a"
        f" lone call (at most {MOST_LATER:g}): {'kept' if kept else 'NOT kept'}"
    )


if __name__ == "__main__":
    main()
