"""How many connections the gRPC port has. gRPC does not say so in Python; the kernel's tables do."""

import math
import os
import re
from pathlib import Path

_ESTABLISHED, _CLOSE_WAIT = b"01", b"08"
_CONNECTED = b"03"


def connections(address: str, tables: Path = Path("/proc/net")) -> float:
    """How many connections there are to an address; NaN where the kernel has no such tables.

    Args:
        address: host:port or unix:PATH, at which a server listens.
        tables: their folder, proc_net(5).
    """
    try:
        if address.startswith("unix:"):
            path = re.escape(os.fsencode(address.removeprefix("unix:")))
            lines = rb"^\S+ \S+ \S+ \S+ \S+ %b +\d+ %b$" % (_CONNECTED, path)
            return _count(lines, (tables / "unix").read_bytes())
        port = b"%04X" % int(address.rpartition(":")[2])
        lines = rb"^ *\d+: \w+:%b \w+:\w+ (?:%b|%b) " % (port, _ESTABLISHED, _CLOSE_WAIT)
        found = _count(lines, (tables / "tcp").read_bytes())
    except FileNotFoundError:
        return math.nan
    six = tables / "tcp6"  # which a kernel without IPv6 does not have
    return found + (_count(lines, six.read_bytes()) if six.exists() else 0)


def _count(lines: bytes, table: bytes) -> int:
    return len(re.findall(lines, table, re.MULTILINE))
