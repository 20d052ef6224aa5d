"""What every benchmark prints: the machine, and tables whose figures were measured in this very run."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path


def machine() -> str:
    """One line: processor, cores this process may use, matrix instructions, Python."""
    cpu, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            if key.strip() == "flags":
                flags = value
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    known = [flag for flag in wanted if flag in flags.split()]
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {' '.join(known) or 'no flags known'}, Python {platform.python_version()}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value at or below which `share` (0 to 1) of the values lie; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, so that a run's output can be pasted into the docs as it is."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
