"""How the clients connect, wait, try again and close."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

import mien
from mien.channel import MAX_TIMEOUT, channel_options, resolve_address
from mien.v1 import face_pb2 as pb

Call = Callable[..., Any]
Code = grpc.StatusCode


def not_ready() -> Any:
    return error_details_pb2.ErrorInfo(reason="MODEL_NOT_READY", domain="mien")


def test_what_is_unavailable_for_a_moment_is_tried_again(call: Call, peer: Any) -> None:
    peer.refuses(Code.UNAVAILABLE, "loading", not_ready(), times=2)
    assert len(call("detect", b"photo").faces) == 2
    assert len(peer.received) == 3


def test_what_stays_unavailable_is_tried_four_times(call: Call, peer: Any) -> None:
    peer.refuses(Code.UNAVAILABLE, "loading", not_ready(), times=9)
    with pytest.raises(mien.ModelNotReady):
        call("detect", b"photo")
    assert len(peer.received) == 4


def test_large_photos_are_tried_again_too(call: Call, peer: Any) -> None:
    photo = bytes(4 * 1024 * 1024)
    peer.refuses(Code.UNAVAILABLE, "loading", not_ready())
    call("detect", photo)
    assert [len(received.request.image.encoded) for received in peer.received] == [len(photo)] * 2


@pytest.mark.parametrize(
    "code",
    [
        Code.INVALID_ARGUMENT,
        Code.FAILED_PRECONDITION,
        Code.NOT_FOUND,
        Code.RESOURCE_EXHAUSTED,
        Code.INTERNAL,
        Code.UNKNOWN,
    ],
)
def test_nothing_else_is_tried_again(call: Call, peer: Any, code: Code) -> None:
    peer.aborts(code, "no")
    with pytest.raises(mien.MienError):
        call("detect", b"photo")
    assert len(peer.received) == 1


def test_calls_have_a_finite_deadline_by_default(call: Call, peer: Any) -> None:
    call("detect", b"photo")
    call("detect", b"photo", timeout=100)
    default, given = (received.seconds_left for received in peer.received)
    assert 5 < default < 11  # on the wire, gRPC rounds it up
    assert 95 < given < 102


@pytest.mark.parametrize(
    "timeout", [0, -1, float("inf"), float("nan"), MAX_TIMEOUT + 1, 7.5e9, sys.maxsize]
)
def test_a_timeout_must_be_above_zero_and_at_most_a_year(call: Call, timeout: float) -> None:
    with pytest.raises(ValueError, match="the timeout must be above 0 and at most 31536000"):
        call("detect", b"photo", timeout=timeout)
    with pytest.raises(ValueError, match="the timeout must be above 0 and at most 31536000"):
        mien.Client(timeout=timeout)


def test_the_longest_timeout_is_the_calls_deadline(call: Call, peer: Any) -> None:
    call("detect", b"photo", timeout=MAX_TIMEOUT)
    assert peer.received[0].seconds_left == pytest.approx(MAX_TIMEOUT, rel=0.01)


@pytest.mark.parametrize("timeout", ["5", [5], 1j])
def test_a_timeout_must_be_a_number(call: Call, timeout: Any) -> None:
    with pytest.raises(TypeError, match="the timeout must be a number of seconds"):
        call("detect", b"photo", timeout=timeout)
    each: Any
    for each in (timeout, None):
        with pytest.raises(TypeError, match="the timeout must be a number of seconds"):
            mien.Client(timeout=each)


def test_retries_end_with_the_timeout(call: Call, peer: Any) -> None:
    release = threading.Event()
    peer.refuses(Code.UNAVAILABLE, "loading", not_ready())
    peer.holds(release)
    with pytest.raises(mien.DeadlineExceeded):
        call("detect", b"photo", timeout=0.5)
    release.set()


def test_a_large_answer_arrives(call: Call, peer: Any) -> None:
    well = call("embed", b"photo").faces[0]
    values = [0.5] * 2_000_000
    face = pb.Face(embedding=pb.Embedding(values=values, norm=well.embedding.norm))
    peer.script.append(lambda request, context: pb.EmbedResponse(faces=[face]))
    assert call("embed", b"photo").embedding.values.shape == (2_000_000,)


@pytest.mark.parametrize("called", [True, False])
def test_a_client_connects_at_its_first_call(called: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with mien.Client(address) as client:
            asyncio.run(mien.AsyncClient(address).close())
            if called:
                with pytest.raises(mien.DeadlineExceeded):
                    client.detect(b"photo", timeout=0.3)
                listener.accept()[0].close()
            else:
                with pytest.raises(TimeoutError):
                    listener.accept()


def test_a_client_outlives_its_server(peer: Any) -> None:
    with mien.Client(peer.address) as client:
        client.detect(b"photo")
        peer.stop()
        with pytest.raises(mien.Unavailable):
            client.detect(b"photo")
        peer.start()
        # The connection comes back by itself, after at most a second of backoff.
        for _ in range(8):
            try:
                client.detect(b"photo")
            except mien.Unavailable:
                continue
            return
    pytest.fail("the client did not find its server again")


def test_closing_ends_calls_in_progress(peer: Any) -> None:
    release = threading.Event()
    entered = peer.holds(release)
    client = mien.Client(peer.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.detect, b"photo")
        assert entered.wait(10)
        client.close()
        with pytest.raises(mien.Cancelled):
            call.result(10)
        release.set()


async def test_closing_an_async_client_ends_calls_in_progress(peer: Any) -> None:
    release = threading.Event()
    entered = peer.holds(release)
    client = mien.AsyncClient(peer.address)
    call = asyncio.create_task(client.detect(b"photo"))
    assert await asyncio.to_thread(entered.wait, 10)
    await client.close()
    with pytest.raises(mien.Cancelled):
        await call
    release.set()


class Slow(os.PathLike[str]):
    """The path of a photo that takes its time to be read."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"photo")
        self.path = path
        self.entered, self.release = threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        self.entered.set()
        self.release.wait(30)
        return str(self.path)


def test_closing_ends_calls_whose_photo_is_still_being_read(peer: Any, tmp_path: Path) -> None:
    photo = Slow(tmp_path / "photo.jpg")
    client = mien.Client(peer.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.detect, photo)
        assert photo.entered.wait(10)
        client.close()
        photo.release.set()
        with pytest.raises(mien.Cancelled, match="closed during the call"):
            call.result(10)


@pytest.mark.parametrize("used", [True, False])
async def test_closing_an_async_client_ends_calls_whose_photo_is_still_being_read(
    peer: Any, tmp_path: Path, used: bool
) -> None:
    photo = Slow(tmp_path / "photo.jpg")
    client = mien.AsyncClient(peer.address)
    if used:
        await client.detect(b"photo")
    call = asyncio.create_task(client.detect(photo))
    assert await asyncio.to_thread(photo.entered.wait, 10)
    await client.close()
    photo.release.set()
    with pytest.raises(mien.Cancelled, match="closed during the call"):
        await call


async def test_cancelling_a_task_stays_a_cancellation(peer: Any) -> None:
    release = threading.Event()
    entered = peer.holds(release)
    async with mien.AsyncClient(peer.address) as client:
        call = asyncio.create_task(client.detect(b"photo"))
        assert await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        release.set()


def test_a_closed_client_says_so(peer: Any) -> None:
    client = mien.Client(peer.address)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.detect(b"photo")


async def test_a_closed_async_client_says_so(peer: Any) -> None:
    used, unused = mien.AsyncClient(peer.address), mien.AsyncClient(peer.address)
    await used.detect(b"photo")
    for client in (used, unused):
        await client.close()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.detect(b"photo")
    assert len(peer.received) == 1


def test_threads_share_a_client(peer: Any) -> None:
    def embed(i: int) -> int:
        return client.embed(str(i).encode()).image_width

    with mien.Client(peer.address) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(embed, range(100))) == [100] * 100
    assert {r.request.image.encoded for r in peer.received} == {str(i).encode() for i in range(100)}


async def test_tasks_share_an_async_client(peer: Any) -> None:
    async with mien.AsyncClient(peer.address) as client:
        results = await asyncio.gather(*(client.embed(b"photo") for _ in range(100)))
    assert len(results) == len(peer.received) == 100


def test_an_async_client_may_be_made_outside_the_event_loop(peer: Any) -> None:
    client = mien.AsyncClient(peer.address)

    async def use() -> int:
        async with client:
            return len((await client.detect(b"photo")).faces)

    assert asyncio.run(use()) == 2


def test_an_async_client_of_another_event_loop_says_so(peer: Any) -> None:
    client = mien.AsyncClient(peer.address)

    async def detect() -> int:
        return len((await client.detect(b"photo")).faces)

    assert asyncio.run(detect()) == 2
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(detect())
    asyncio.run(client.close())
    assert len(peer.received) == 1


def test_the_address_is_the_argument_else_the_variable_else_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MIEN_ADDRESS", raising=False)
    assert mien.Client().address == "localhost:8001"
    monkeypatch.setenv("MIEN_ADDRESS", "")
    assert mien.Client().address == "localhost:8001"
    monkeypatch.setenv("MIEN_ADDRESS", "faces:9000")
    assert mien.AsyncClient().address == "faces:9000"
    assert mien.Client("other:1").address == "other:1"


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP", "grpc", "grpcs", "tcp"])
def test_a_web_address_is_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match="without the scheme"):
        resolve_address(f"{scheme}://localhost:8001")


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "localhost:65536", "[::1]:0"])
def test_a_port_that_there_is_not_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"port of an address must be in \[1, 65535\]"):
        resolve_address(address)


@pytest.mark.parametrize(
    "address",
    ["h:1", "[::1]:65535", "dns:///faces:8001", "dns:faces:80", "unix:/run/mien.sock", "unix:a"],
)
def test_what_grpc_takes_for_an_address_is_one(address: str) -> None:
    assert resolve_address(address) == address


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("localhost", "localhost:8001"),
        ("faces.example", "faces.example:8001"),
        ("10.0.0.1", "10.0.0.1:8001"),
        ("dns:///faces", "dns:///faces:8001"),
        ("dns:faces", "dns:faces:8001"),
        ("[::1]", "[::1]:8001"),
        ("::1", "[::1]:8001"),
        ("2001:db8::17", "[2001:db8::17]:8001"),
        ("fe80::1%eth0", "[fe80::1%eth0]:8001"),
        ("1:2:3:4:5:6:7:8", "[1:2:3:4:5:6:7:8]:8001"),
        ("1:2:3:4:5:6:7:8:9000", "[1:2:3:4:5:6:7:8]:9000"),
    ],
)
def test_a_port_or_brackets_that_are_left_out_are_put_in(given: str, called: str) -> None:
    assert resolve_address(given) == called


def test_an_ipv6_address_of_two_meanings_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"write \[::1:8001\] or \[::1\]:8001"):
        resolve_address("::1:8001")


@pytest.mark.parametrize(
    "address", ["a:b:1", ":8001", "[::1", "[faces]:1", "faces:1/x", "a/b", "::zz"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        resolve_address(address)


@pytest.mark.parametrize("address", ["localhost:", "localhost:grpc", "localhost:800l"])
def test_a_port_is_a_number(address: str) -> None:
    with pytest.raises(ValueError, match="the port of an address must be in"):
        resolve_address(address)


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_without_a_port_calls_go_to_mien_s_own(call: Call, host: str) -> None:
    with pytest.raises(mien.Unavailable, match=r":8001") as caught:
        call("detect", b"photo", address=host, timeout=5)
    assert ":443" not in caught.value.message


@pytest.mark.parametrize("client", [mien.Client, mien.AsyncClient])
def test_an_address_or_credentials_of_a_wrong_type_are_a_type_error(client: Any) -> None:
    with pytest.raises(TypeError, match="the address must be a str, host:port, not 3"):
        client(3)
    with pytest.raises(
        TypeError, match=r"credentials must come from grpc\.ssl_channel_credentials"
    ):
        client(credentials="server.pem")


def test_a_local_server_is_never_looked_for_behind_a_proxy(
    call: Call, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    port = peer.address.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        assert call("detect", b"photo", address=f"{host}:{port}")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:1", True),
        ("localhost", True),
        ("127.0.0.9:1", True),
        ("[::1]:1", True),
        ("faces.internal:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_which_addresses_are_local(address: str, local: bool) -> None:
    assert (("grpc.enable_http_proxy", 0) in channel_options(resolve_address(address))) is local
