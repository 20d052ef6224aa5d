"""How the SDK connects: the address, the limits of messages and time, keepalive and retries."""

import ipaddress
import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

import grpc

DEFAULT_PORT = 8001
DEFAULT_ADDRESS = f"localhost:{DEFAULT_PORT}"
MAX_PORT = 65535
ADDRESS_VARIABLE = "MIEN_ADDRESS"
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Of requests and answers; the server's default, too."""
MAX_TIMEOUT = 365 * 24 * 60 * 60
"""A year, in seconds: gRPC takes deadlines some 200 years ahead for passed."""

# The schemes of gRPC that are written with "://". It would take any other for a host's name.
_SCHEMES = ("dns", "unix", "xds")

# Of galleries: what may be done twice. A deletion whose answer was lost would next find nothing to delete.
_REPEATABLE = (
    *("Enrol", "Identify", "ListCollections", "GetCollection"),
    *("ListPersons", "GetPerson", "ListFaces", "GetFace", "GetCrop", "MoveFaces"),
)
# Addresses that gRPC takes as they are: no host and port, or several of them.
_WHOLE = ("unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")

# Only what no server has worked on is tried again. The throttle stops retries for all calls of a
# channel while most of them fail, so that a server in trouble is not hit four times as hard.
SERVICE_CONFIG: Mapping[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": "mien.v1.FaceService"},
                *(
                    {"service": "mien.v1.GalleryService", "method": method}
                    for method in _REPEATABLE
                ),
            ],
            "waitForReady": False,
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}


def resolve_address(address: str | None) -> str:
    """The address to call: `address`, else the variable MIEN_ADDRESS, else localhost:8001.

    A host without a port gets 8001, and an IPv6 address its brackets.

    Raises:
        TypeError: it is no str.
        ValueError: it has the scheme of a web address, a port that there is not, or more than one meaning.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if not isinstance(address, str):
        raise TypeError(f"the address must be a str, host:port, not {address!r}")
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in _SCHEMES:
        raise ValueError(f"the address must be host:port, without the scheme: {address}")
    if address.startswith(_WHOLE):
        return address
    prefix, target = _dns_prefix(address)
    host, port = _split(target)
    if host.startswith("["):
        if not (host.endswith("]") and _is_ipv6(host[1:-1])):
            raise ValueError(f"what stands in brackets must be an IPv6 address: {address}")
    elif not host or "/" in host or ":" in host:
        raise ValueError(f"the address must be host:port, or [IPv6]:port: {address}")
    # gRPC would dial the port modulo 65536.
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= MAX_PORT):
        raise ValueError(f"the port of an address must be in [1, {MAX_PORT}]: {address}")
    return f"{prefix}{host}:{port}"


def host_and_port(address: str) -> tuple[str, int] | None:
    """The two of what `resolve_address` gave; None for a socket's file and the like."""
    if address.startswith(_WHOLE):
        return None
    host, _, port = _dns_prefix(address)[1].rpartition(":")
    return host.strip("[]"), int(port)


def _dns_prefix(address: str) -> tuple[str, str]:
    """`dns:` or `dns://server/`, as far as it is there, and the rest."""
    if not address.startswith("dns:"):
        return "", address
    begin, slash, target = address.rpartition("/")
    return (begin + slash, target) if slash else ("dns:", address.removeprefix("dns:"))


def _split(target: str) -> tuple[str, str]:
    """Host and port; the host in brackets if it is an IPv6 address, the port 8001 if there is none."""
    head, _, tail = target.rpartition(":")
    if _is_ipv6(target):
        if _is_ipv6(head):
            raise ValueError(
                f"{target} may be a whole IPv6 address, or {head} and the port {tail}: write [{target}] or"
                f" [{head}]:{tail}"
            )
        return f"[{target}]", str(DEFAULT_PORT)
    if ":" not in target or target.endswith("]"):
        return target, str(DEFAULT_PORT)
    return (f"[{head}]", tail) if _is_ipv6(head) else (head, tail)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def checked_timeout(timeout: object) -> float:
    """The timeout, in seconds.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0, or beyond `MAX_TIMEOUT`.
    """
    if not isinstance(timeout, numbers.Real):
        raise TypeError(f"the timeout must be a number of seconds, not {timeout!r}")
    seconds = float(timeout)
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ValueError(
            f"the timeout must be above 0 and at most {MAX_TIMEOUT} seconds (a year), not {timeout}"
        )
    return seconds


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel to `address`, over TLS if there are credentials."""
    options = channel_options(address)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def channel_options(address: str) -> list[tuple[str, int | str]]:
    """The channel arguments for a server at `address`."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # A call whose request outgrows this buffer is not retried; the default holds 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # gRPC servers take pings more often than every 5 minutes for abuse, unless told otherwise.
        ("grpc.keepalive_time_ms", 6 * 60 * 1000),
        ("grpc.keepalive_timeout_ms", 20 * 1000),
        # The default waits up to 2 minutes before it looks again for a server that was down.
        ("grpc.max_reconnect_backoff_ms", 5 * 1000),
        # Each client has a connection of its own, and none inherits another's backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if _is_loopback(address):
        # Where http_proxy is set and no_proxy is not, gRPC would send even these to the proxy.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def is_local(address: str) -> bool:
    """Whether calls to `address` leave the machine neither in plain text nor otherwise."""
    return address.startswith("unix:") or _is_loopback(address)


def _is_loopback(address: str) -> bool:
    found = host_and_port(address)
    if found is None:
        return False
    host = found[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
