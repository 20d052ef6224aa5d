"""How the SDK connects: the address, the limits of messages and time, keepalive and retries."""

import ipaddress
import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

import grpc

DEFAULT_ADDRESS = "localhost:8001"
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
    *("ListPersons", "GetPerson", "ListFaces", "GetFace", "MoveFaces"),
)

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

    Raises:
        TypeError: it is no str.
        ValueError: it has the scheme of a web address, or a port that there is not.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if not isinstance(address, str):
        raise TypeError(f"the address must be a str, host:port, not {address!r}")
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in _SCHEMES:
        raise ValueError(f"the address must be host:port, without the scheme: {address}")
    port = address.rpartition(":")[2]
    # gRPC would dial the port modulo 65536.
    if port.isdecimal() and not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"the port of an address must be in [1, {MAX_PORT}]: {address}")
    return address


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
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
