"""`embed_many` of both clients: order, back-pressure, errors by item, a busy server, and an early end."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mien
from tests.unit.client.conftest import WELL, Peer

Many = Callable[..., list[mien.Outcome[Any, mien.EmbedResult]]]


@pytest.fixture(params=["Client", "AsyncClient"])
def many(request: pytest.FixtureRequest, peer: Peer) -> Many:
    """`many(photos, take=..., option=...)` on the peer, by either client: the outcomes, all or the first."""

    def many(
        photos: Iterable[Any], *, take: int | None = None, limits: Any = None, **options: Any
    ) -> list[mien.Outcome[Any, mien.EmbedResult]]:
        if request.param == "Client":
            with (
                mien.Client(peer.address, limits=limits) as client,
                contextlib.closing(client.embed_many(photos, **options)) as outcomes,
            ):
                return list(itertools.islice(outcomes, take))

        async def run() -> list[mien.Outcome[Any, mien.EmbedResult]]:
            found = []
            async with (
                mien.AsyncClient(peer.address, limits=limits) as client,
                contextlib.aclosing(client.embed_many(photos, **options)) as outcomes,
            ):
                async for outcome in outcomes:
                    found.append(outcome)
                    if len(found) == take:
                        break
            return found

        return asyncio.run(run())

    return many


def failure(code: grpc.StatusCode, reason: str, retry: float | None = None) -> Callable[..., Any]:
    """What answers a call by an error of mien's."""

    def act(request: Any, context: Any) -> Any:
        details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="mien")]
        if retry is not None:
            delay = Duration(nanos=int(retry * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        peer = Peer()
        peer.refuses(code, "no", *details)
        return peer.script[0](request, context)

    return act


def by_photo(peer: Peer, acts: dict[bytes, Callable[..., Any]]) -> None:
    """Answers certain photos in their own way, and all others well, without end."""

    def act(request: Any, context: Any) -> Any:
        peer.script.append(act)
        return acts.get(request.image.encoded, WELL["Embed"])(request, context)

    peer.script.extend([act] * 64)


def test_outcomes_come_in_the_order_of_the_photos_whatever_takes_long(
    many: Many, peer: Peer
) -> None:
    def slow(request: Any, context: Any) -> Any:
        time.sleep(0.3)
        return WELL["Embed"](request, context)

    by_photo(peer, {b"0": slow, b"3": slow})
    found = many((str(i).encode() for i in range(12)), concurrency=4)
    assert [(each.index, each.item) for each in found] == [(i, str(i).encode()) for i in range(12)]
    assert all(each.error is None and each.get().embedding.norm == 9.5 for each in found)


def test_without_order_one_that_takes_long_holds_up_no_other(many: Many, peer: Peer) -> None:
    go = threading.Event()

    def held(request: Any, context: Any) -> Any:
        assert go.wait(20)
        return WELL["Embed"](request, context)

    def photos() -> Iterator[bytes]:
        for i in range(10):
            if i == 9:  # it is read after some that came later than the first have been given out
                go.set()
            yield str(i).encode()

    by_photo(peer, {b"0": held})
    found = many(photos(), concurrency=2, ordered=False)
    assert sorted(each.index for each in found) == list(range(10))
    assert found[0].index != 0


@pytest.mark.parametrize("ordered", [True, False])
def test_endless_source_is_read_only_as_far_as_the_window(
    many: Many, peer: Peer, ordered: bool
) -> None:
    read = 0

    def photos() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"photo"

    assert len(many(photos(), take=5, concurrency=3, ordered=ordered)) == 5
    assert read <= 5 + 2 * 3
    assert len(peer.received) <= read


def test_no_more_calls_than_asked_for_at_a_time(many: Many, peer: Peer) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def counted(request: Any, context: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return WELL["Embed"](request, context)

    by_photo(peer, {b"photo": counted})
    assert len(many([b"photo"] * 20, concurrency=3)) == 20
    assert most == 3


def test_photo_that_fails_has_its_error_and_the_rest_goes_on(
    many: Many, peer: Peer, tmp_path: Path
) -> None:
    by_photo(
        peer,
        {
            b"1": failure(grpc.StatusCode.FAILED_PRECONDITION, "FACE_NOT_FOUND"),
            b"2": failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_IMAGE"),
            b"3": failure(grpc.StatusCode.INTERNAL, "INTERNAL"),
        },
    )
    photos = [b"0", b"1", b"2", b"3", tmp_path / "none.jpg", b"5"]
    found = many(photos, concurrency=2)
    assert [type(each.error) for each in found] == [
        type(None),
        mien.FaceNotFound,
        mien.InvalidRequest,
        mien.ServerError,
        FileNotFoundError,
        type(None),
    ]
    assert [each.result is None for each in found] == [bool(each.error) for each in found]
    with pytest.raises(mien.FaceNotFound):
        found[1].get()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", mien.PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", mien.ModelNotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_OPTION", mien.InvalidRequest),
    ],
)
def test_what_is_wrong_with_all_photos_is_raised(
    many: Many, peer: Peer, code: grpc.StatusCode, reason: str, kind: type[mien.MienError]
) -> None:
    by_photo(peer, {b"photo": failure(code, reason)})
    with pytest.raises(kind):
        many(itertools.repeat(b"photo"), concurrency=2)
    assert len(peer.received) <= 2 * 2 + 1


def test_busy_server_is_waited_for_as_it_asks(many: Many, peer: Peer) -> None:
    peer.script.extend([failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 0.2)] * 5)
    began = time.monotonic()
    found = many([b"0", b"1", b"2"], concurrency=1)
    assert [each.error for each in found] == [None] * 3
    assert len(peer.received) == 8
    assert time.monotonic() - began >= 5 * 0.2


def test_server_that_starts_again_is_waited_for(many: Many, peer: Peer) -> None:
    def photos() -> Iterator[bytes]:
        for i in range(8):
            if i == 6:
                peer.stop()
                threading.Timer(0.5, peer.start).start()
            yield str(i).encode()

    found = many(photos(), concurrency=1)
    assert [(each.index, each.error) for each in found] == [(i, None) for i in range(8)]


def test_call_that_the_server_ends_when_it_stops_is_made_again(many: Many, peer: Peer) -> None:
    peer.script.append(WELL["Embed"])
    peer.aborts(grpc.StatusCode.CANCELLED, "")  # what gRPC says for a server that stops
    found = many([b"0", b"1"], concurrency=1)
    assert [each.error for each in found] == [None, None]
    assert [call.request.image.encoded for call in peer.received] == [b"0", b"1", b"1"]


def test_server_that_never_answered_is_not_waited_for(many: Many, peer: Peer) -> None:
    peer.stop()
    began = time.monotonic()
    with pytest.raises(mien.Unavailable):
        many(itertools.repeat(b"photo"), concurrency=2, timeout=5)
    assert time.monotonic() - began < 30


def test_closing_early_cancels_the_calls_in_progress(many: Many, peer: Peer) -> None:
    ended, until = threading.Semaphore(0), threading.Event()

    def held(request: Any, context: Any) -> Any:
        if not context.add_callback(ended.release):  # it was cancelled before it got here
            ended.release()
        until.wait(30)
        return WELL["Embed"](request, context)

    by_photo(peer, {b"held": held})
    began = time.monotonic()
    assert len(many([b"quick", *[b"held"] * 20], take=1, concurrency=3)) == 1
    assert time.monotonic() - began < 10
    for _ in range(len(peer.received) - 1):
        assert ended.acquire(timeout=10)
    assert len(peer.received) <= 1 + 2 * 3  # nothing began afterwards
    until.set()


def test_closing_ends_the_wait_for_a_busy_server(many: Many, peer: Peer) -> None:
    by_photo(peer, {b"busy": failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 60.0)})
    began = time.monotonic()
    assert len(many([b"quick", b"busy", b"busy"], take=1, concurrency=2)) == 1
    assert time.monotonic() - began < 20


def test_what_the_source_raises_is_raised(many: Many) -> None:
    def photos() -> Iterator[bytes]:
        yield b"0"
        raise LookupError("the source")

    with pytest.raises(LookupError, match="the source"):
        many(photos(), concurrency=1)


@pytest.mark.parametrize(("concurrency", "kind"), [(0, ValueError), ("4", TypeError)])
def test_concurrency_that_cannot_be(many: Many, concurrency: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="concurrency"):
        many([b"photo"], concurrency=concurrency)


def test_several_connections_share_the_calls(many: Many, peer: Peer) -> None:
    limits = mien.Limits(max_calls=3, max_connections=2)
    assert len(many([b"photo"] * 12, limits=limits, concurrency=6)) == 12
    assert len(peer.received) == 12


def test_client_that_is_closed_meanwhile_ends_the_run(peer: Peer) -> None:
    until = threading.Event()

    def held(request: Any, context: Any) -> Any:
        until.wait(30)
        return WELL["Embed"](request, context)

    by_photo(peer, {b"held": held})
    client = mien.Client(peer.address)
    outcomes = client.embed_many([b"quick", b"held"], concurrency=2)
    assert next(outcomes).error is None
    client.close()
    with pytest.raises(mien.Cancelled, match="closed"):
        next(outcomes)
    until.set()
    with pytest.raises(RuntimeError, match="closed"):
        next(client.embed_many([b"photo"]))


async def test_asynchronous_source_holds_up_no_result(peer: Peer) -> None:
    go = asyncio.Event()

    async def photos() -> AsyncIterator[bytes]:
        yield b"0"
        await go.wait()
        yield b"1"

    async with mien.AsyncClient(peer.address) as client:
        outcomes = client.embed_many(photos())
        async with asyncio.timeout(20):
            assert (await anext(outcomes)).index == 0  # although the second has not come yet
            go.set()
            assert [each.index async for each in outcomes] == [1]
