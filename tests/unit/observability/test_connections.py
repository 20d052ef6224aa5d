"""How many connections a port or a socket has, by the kernel's tables."""

import math
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mien_server.observability.connections import connections


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_connections_to_a_port_are_counted_until_they_end(
    family: socket.AddressFamily, host: str
) -> None:
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert connections(address) == 0
        with ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection((host, port))) for _ in range(3)
            ]
            accepted = [stack.enter_context(listening.accept()[0]) for _ in range(3)]
            assert connections(address) == 3
            clients[0].close()  # one that is gone counts as long as the server has it open
            assert connections(address) == 3
            accepted[0].close()
            _until(lambda: connections(address) == 2)
        _until(lambda: connections(address) == 0)


def test_connections_to_a_unix_socket_are_counted_until_they_end(tmp_path: Path) -> None:
    path = tmp_path / "a (socket)"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(path))
        listening.listen()
        assert connections(f"unix:{path}") == 0
        client.connect(str(path))
        accepted = listening.accept()[0]
        assert connections(f"unix:{path}") == 1
        accepted.close()
        assert connections(f"unix:{path}") == 0


def test_system_without_these_tables_has_no_number(tmp_path: Path) -> None:
    assert math.isnan(connections("127.0.0.1:8001", tmp_path))
    assert math.isnan(connections("unix:/run/mien", tmp_path))


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
