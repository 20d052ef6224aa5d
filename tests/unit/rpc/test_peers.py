import pytest

from mien_server.rpc.peers import is_local


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:50000",
        "ipv4:127.8.8.8:1",
        "ipv6:[::1]:50000",
        "ipv6:%5B::1%5D:50000",
        "unix:",
        "unix:/run/mien.sock",
        "unix-abstract:mien",
    ],
)
def test_loopback_and_unix_sockets_are_this_machine(peer: str) -> None:
    assert is_local(peer)


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:10.0.0.1:50000",
        "ipv4:0.0.0.0:1",
        "ipv6:[2001:db8::1]:50000",
        "ipv6:%5Bfe80::1%25eth0%5D:50000",
        "",
        "unknown",
        "ipv4:",
        "vsock:127.0.0.1:1",
        "ipv4:localhost:1",
    ],
)
def test_everything_else_is_not(peer: str) -> None:
    assert not is_local(peer)
