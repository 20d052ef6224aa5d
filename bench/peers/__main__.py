"""mien against what a good engineer would wire by hand, and against other servers.

    python -m bench.peers [--quick] [--minutes 18] [--out out/peers] [--docs docs/benchmarks.md]
        [--workloads embed sface] [--peers "Ray Serve"] [--no-triton]

Makes the peers' environments first, if need be (`bench.peers.setup`). Writes peers.md, peers.json and
peers.svg into the folder that --out names, with the servers' logs beside them; --docs puts the tables between
the two marks of that page, and the picture into images/ beside it.
"""

import argparse
import asyncio
import signal
from pathlib import Path

from bench.peers.draw import draw
from bench.peers.measure import Measurement, Results
from bench.peers.plan import Plan, chosen
from bench.peers.report import as_json, markdown
from bench.peers.servers import PEERS
from bench.peers.setup import ROOT, CannotRun, prepare
from bench.peers.workloads import EMBED, WORKLOADS

MARKS = ("<!-- bench.peers: begin -->", "<!-- bench.peers: end -->")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--minutes", type=float, help="what all may take [18; 4 if --quick]")
    parser.add_argument("--quick", action="store_true", help="fewer callers and one round")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "peers", help="where results go")
    parser.add_argument("--docs", type=Path, help="a page with the marks, which gets the tables")
    keys = [workload.key for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=keys, default=[], help="[all]")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="[all]")
    parser.add_argument("--no-triton", action="store_true", help="leave Triton out")
    parser.add_argument(
        "--agreement", type=float, default=0.995, help="with mien's answers, at least [0.995]"
    )
    options = parser.parse_args()
    # Either ends the run in order: servers go, and what was measured is written.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    workloads = chosen(options.workloads)
    wanted = [peer for peer in PEERS if peer.name in options.peers]
    failed = prepare()
    peers = [peer for peer in wanted if peer.environment not in failed]
    without_triton = [failed[name] for name in ("triton", "programs") if name in failed]
    plan = Plan(
        minutes=options.minutes or (4.0 if options.quick else 18.0),
        workloads=workloads,
        quick=options.quick,
        analyse=not options.no_triton and not without_triton,
        servers=len(peers) + 1,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(plan, peers, options.out, options.agreement)
    for peer in wanted:
        if peer.environment in failed:
            measurement.results.miss(f"{peer.name}: {failed[peer.environment]}")
    for reason in without_triton:
        measurement.results.miss(f"Triton: {reason}")
    try:
        asyncio.run(measurement.run())
    finally:
        # What was measured until an end that came too early is of use, too.
        write(measurement.results, options.out, options.docs)


def write(results: Results, out: Path, docs: Path | None) -> None:
    """Prints the tables and writes all files."""
    tables = markdown(results)
    print(tables)
    picture = draw(results.closed.get(EMBED.key, []), EMBED.title, EMBED.unit)
    (out / "peers.md").write_text(tables)
    (out / "peers.json").write_text(as_json(results))
    (out / "peers.svg").write_text(picture)
    if docs is not None:
        before, begin, rest = docs.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not end:
            raise CannotRun(f"{docs} has no {MARKS[0]} … {MARKS[1]}")
        image = "![Throughput against latency](images/peers.svg)"
        docs.write_text(f"{before}{begin}\n{image}\n\n{tables}{end}{after}")
        (docs.parent / "images").mkdir(exist_ok=True)
        (docs.parent / "images" / "peers.svg").write_text(picture)


if __name__ == "__main__":
    main()
