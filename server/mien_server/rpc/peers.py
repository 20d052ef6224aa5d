"""Who is at the other end of a connection, as gRPC writes it."""

from ipaddress import ip_address
from urllib.parse import unquote


def is_local(peer: str) -> bool:
    """Whether a peer is on this machine: on its loopback, or at a Unix socket.

    Args:
        peer: as `ServicerContext.peer` has it: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`, `unix:`.
    """
    kind, _, address = unquote(peer).partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return kind in ("ipv4", "ipv6") and ip_address(host).is_loopback
    except ValueError:
        return False
