"""How the SDK connects: the address, the message limits, keepalive and retries."""

import ipaddress
import json
import os
from collections.abc import Mapping
from typing import Any

DEFAULT_ADDRESS = "localhost:8001"
ADDRESS_VARIABLE = "MIEN_ADDRESS"
MAX_MESSAGE_BYTES = 32 * 1024 * 1024

# Only what no server has worked on is tried again. The throttle stops retries for all calls of a
# channel while most of them fail, so that a server in trouble is not hit four times as hard.
SERVICE_CONFIG: Mapping[str, Any] = {
    "methodConfig": [
        {
            "name": [{"service": "mien.v1.FaceService"}],
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
        ValueError: it is a web address, which gRPC would take for a host name.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if address.startswith(("http://", "https://")):
        raise ValueError(f"the address must be host:port, without the scheme: {address}")
    return address


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


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
