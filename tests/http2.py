"""A client that speaks just enough HTTP/2 to misbehave: frames made by hand, and sent in parts."""

import socket
import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers in HPACK's plainest form, names and values of up to 126 bytes."""
    block = b""
    for name, value in headers.items():
        key, text = name.encode(), value.encode()
        block += b"\0" + bytes([len(key)]) + key + bytes([len(text)]) + text
    return block


def call_headers(path: str, **more: str) -> bytes:
    """The header block that begins a call of gRPC."""
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return header_block(usual | {name.replace("_", "-"): value for name, value in more.items()})


def connect(address: str, seconds: float = 10.0) -> socket.socket:
    """A connection whose reads take no longer than so many seconds; nothing has been sent."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=seconds)
    connection.settimeout(seconds)
    return connection


def greet(connection: socket.socket) -> None:
    """Begins HTTP/2."""
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))


def begin_call(connection: socket.socket, path: str, stream: int = 1, **headers: str) -> None:
    """Sends the headers of a call, and none of its message."""
    connection.sendall(frame(HEADERS, END_HEADERS, stream, call_headers(path, **headers)))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes the connection before a read runs out of time."""
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True
