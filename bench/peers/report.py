"""What a run prints: Markdown tables, and the same as JSON."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from bench.peers.measure import Cell, Results
from bench.peers.servers import MIEN
from bench.peers.workloads import WORKLOADS
from mien_server.load.report import machine, table

_LEGEND = """\
Each cell: answers a second, and in brackets the milliseconds of the 50th and the 99th percentile. The servers
take turns, in several rounds whose medians count; a server at rest is stopped. The last column is mien's rate
by that of the best of the others."""


def markdown(results: Results, *, heading: str = "###") -> str:
    """All tables, each under a heading."""
    parts = [f"{machine()}\n\n{_LEGEND}"]
    titles = {workload.key: workload for workload in WORKLOADS}
    for key, cells in results.closed.items():
        workload = titles[key]
        parts += [f"{heading} {workload.title}, {workload.unit} a second", closed_table(cells)]
        parts.append(_notes(cells))
    for network, cells in results.analysed.items():
        name = {"sface": "SFace", "arcface": "IR-50"}[network]
        parts += [f"{heading} {name} by perf_analyzer, crops a second", closed_table(cells)]
    if results.opened:
        parts += [f"{heading} Embed of JPEG portraits, open loop", open_table(results.opened)]
    parts.append("Agreement with mien's answers, at worst: " + _agreements(results) + ".")
    if results.missing:
        parts += ["Not run:", "\n".join(f"- {what}" for what in results.missing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def medians(cells: Iterable[Cell]) -> dict[str, dict[str, Cell]]:
    """By load and server: of several rounds the one in the middle, by its rate."""
    rounds: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        rounds.setdefault(cell.load, {}).setdefault(cell.server, []).append(cell)
    return {
        load: {name: _middle(found) for name, found in servers.items()}
        for load, servers in rounds.items()
    }


def _middle(cells: Sequence[Cell]) -> Cell:
    rate = statistics.median_low(cell.rate for cell in cells)
    return next(cell for cell in cells if cell.rate == rate)


def closed_table(cells: Sequence[Cell]) -> str:
    """Callers down, servers across."""
    names = list(dict.fromkeys(cell.server for cell in cells))
    rows = []
    for load, servers in medians(cells).items():
        others = [cell.rate for name, cell in servers.items() if name != MIEN]
        ratio = "-"
        if MIEN in servers and max(others, default=0.0) > 0:
            ratio = f"{servers[MIEN].rate / max(others):.2f}"
        figures = [_figures(servers[name]) if name in servers else "-" for name in names]
        rows.append([load, *figures, ratio])
    return table(["callers", *names, "mien / best"], rows)


def _figures(cell: Cell) -> str:
    failed = f", {sum(cell.failures.values())} failed" if cell.failures else ""
    if math.isnan(cell.p50_ms):
        return f"none{failed}"
    return f"{cell.rate:.1f} ({cell.p50_ms:.0f}, {cell.p99_ms:.0f}){failed}"


def _notes(cells: Sequence[Cell]) -> str:
    """Cores busy, and mien's queues and batches, at the most callers."""
    load, servers = list(medians(cells).items())[-1]
    cores = ", ".join(
        f"{name} {cell.server_cores:.2f} + {cell.generator_cores:.2f}"
        for name, cell in servers.items()
    )
    text = f"Cores busy at {load} callers, server + generator: {cores}."
    mien = servers.get(MIEN)
    if mien and mien.queue_ms is not None:
        text += f" mien's calls waited {mien.queue_ms:.1f} ms in its queues (median)"
        text += f" and ran in batches of {mien.batch:.1f}." if mien.batch is not None else "."
    reasons = {f"{c.server}: {r} {n}" for c in cells for r, n in c.failures.items()}
    return text + (f" Failures: {'; '.join(sorted(reasons))}." if reasons else "")


def open_table(cells: Sequence[Cell]) -> str:
    """A row for each load and server."""
    rows = []
    for cell in cells:
        failed = ", ".join(f"{reason} {count}" for reason, count in cell.failures.items())
        rows.append(
            [
                cell.load,
                cell.server,
                f"{cell.offered:.1f}",
                f"{cell.rate:.1f}",
                _milliseconds(cell.p50_ms),
                _milliseconds(cell.p99_ms),
                f"{cell.late_ms:.1f}",
                failed or "none",
            ]
        )
    header = ("load", "server", "sent/s", "answers/s", "p50 ms", "p99 ms", "sent late, p99 ms")
    return table([*header, "failures"], rows)


def _milliseconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def _agreements(results: Results) -> str:
    worst: dict[str, float] = {}
    for servers in results.agreement.values():
        for name, found in servers.items():
            if name != MIEN:
                worst[name] = min(worst.get(name, 1.0), found)
    return ", ".join(f"{name} {found:.4f}" for name, found in worst.items()) or "nobody else ran"


def as_json(results: Results) -> str:
    """All cells, every round of them."""
    found = {"machine": machine(), **asdict(results)}
    return json.dumps(_without_nan(found), indent=1) + "\n"


def _without_nan(value: object) -> object:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
