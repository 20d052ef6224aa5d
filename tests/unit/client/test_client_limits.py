"""Limits on calls and connections, and retries on overload, by both clients."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mien
from mien.v1 import face_pb2 as pb

WRONG: Any = "2"
Many = Callable[..., list[Any]]


@pytest.fixture(params=["Client", "AsyncClient"])
def many(request: pytest.FixtureRequest, peer: Any) -> Many:
    """`many(n, **options)`: n calls of Detect at once by one client; their answers and errors."""

    def many(
        n: int, *, timeout: float = 10, first: float | None = None, **options: Any
    ) -> list[Any]:
        # With `first`, the first call gets so many seconds, and a head start for the turn.
        seconds = [timeout if first is None else first, *[timeout] * (n - 1)]
        starts = [0.0, *[0.0 if first is None else 0.1] * (n - 1)]

        def attempt(client: mien.Client, timeout: float, start: float) -> Any:
            time.sleep(start)
            try:
                return client.detect(b"photo", timeout=timeout)
            except mien.MienError as error:
                return error

        async def attempt_async(client: mien.AsyncClient, within: float, start: float) -> Any:
            await asyncio.sleep(start)
            return await client.detect(b"photo", timeout=within)

        async def all_at_once() -> list[Any]:
            async with mien.AsyncClient(peer.address, **options) as client:
                calls = map(attempt_async, [client] * n, seconds, starts)
                return await asyncio.gather(*calls, return_exceptions=True)

        if request.param == "AsyncClient":
            return asyncio.run(all_at_once())
        with mien.Client(peer.address, **options) as client, ThreadPoolExecutor(n) as pool:
            return list(pool.map(attempt, [client] * n, seconds, starts))

    return many


class Crowd:
    """Counts the calls that are at the peer at the same time, and where they come from."""

    def __init__(self, peer: Any, calls: int, seconds: float = 0.05) -> None:
        self.now = self.most = 0
        self.callers: set[str] = set()
        self._lock, self._seconds = threading.Lock(), seconds
        peer.script.extend([self._act] * calls)

    def _act(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.callers.add(context.peer())
        time.sleep(self._seconds)
        with self._lock:
            self.now -= 1
        return pb.DetectResponse()


def busy(peer: Any, times: int, seconds: float | None = 0.05) -> None:
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="mien")
    details: list[Any] = [info]
    if seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    peer.refuses(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *details, times=times)


def test_no_more_calls_are_in_progress_than_the_limit(many: Many, peer: Any) -> None:
    crowd = Crowd(peer, 8)
    results = many(8, limits=mien.Limits(max_calls=2))
    assert [type(result) for result in results] == [mien.DetectResult] * 8
    assert crowd.most == 2
    assert len(crowd.callers) == 1


def test_connections_are_as_many_as_needed_up_to_the_limit(many: Many, peer: Any) -> None:
    crowd = Crowd(peer, 6, seconds=0.3)
    many(6, limits=mien.Limits(max_connections=3))
    assert len(crowd.callers) == 3
    alone = Crowd(peer, 1)
    many(1, limits=mien.Limits(max_connections=3))
    assert len(alone.callers) == 1


def test_who_does_not_get_a_turn_in_time_is_told_so(many: Many, peer: Any) -> None:
    Crowd(peer, 1, seconds=1)
    served, refused = many(2, first=10, timeout=0.3, limits=mien.Limits(max_calls=1))
    assert isinstance(served, mien.DetectResult)
    assert isinstance(refused, mien.DeadlineExceeded)
    assert "none of this client's 1 calls" in str(refused)
    assert len(peer.received) == 1


def test_a_failed_call_gives_its_turn_back(many: Many, peer: Any) -> None:
    peer.aborts(grpc.StatusCode.INTERNAL, "no")
    results = many(3, limits=mien.Limits(max_calls=1))
    assert sorted(type(result).__name__ for result in results) == [
        "DetectResult",
        "DetectResult",
        "ServerError",
    ]


def test_overload_is_tried_again_after_the_servers_delay(many: Many, peer: Any) -> None:
    busy(peer, 2, seconds=0.1)
    begun = time.monotonic()
    [result] = many(1, timeout=3, overload_retries=2)
    assert isinstance(result, mien.DetectResult)
    assert len(peer.received) == 3
    assert time.monotonic() - begun >= 0.2
    first, _, last = (received.seconds_left for received in peer.received)
    assert last < first - 0.15  # the tries share the call's time


@pytest.mark.parametrize(
    ("options", "delay", "calls"),
    [
        ({}, 0.01, 1),  # nobody has asked for it
        ({"overload_retries": 2}, 0.01, 3),
        ({"overload_retries": 2}, None, 1),  # the server names no delay
        ({"overload_retries": 2}, 60.0, 1),  # it would be later than the call may last
    ],
)
def test_overload_ends_as_an_error(
    many: Many, peer: Any, options: dict[str, Any], delay: float | None, calls: int
) -> None:
    busy(peer, 9, seconds=delay)
    begun = time.monotonic()
    [result] = many(1, **options)
    assert isinstance(result, mien.Overloaded)
    assert len(peer.received) == calls
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("client", [mien.Client, mien.AsyncClient])
@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda c: c(limits=mien.Limits(max_calls=0)), ValueError),
        (lambda c: c(limits=mien.Limits(max_connections=0)), ValueError),
        (lambda c: c(limits=mien.Limits(max_connections=WRONG)), TypeError),
        (lambda c: c(limits=8), TypeError),
        (lambda c: c(overload_retries=-1), ValueError),
        (lambda c: c(overload_retries=True), TypeError),
    ],
)
def test_limits_that_cannot_be_are_refused(client: Any, build: Any, kind: Any) -> None:
    with pytest.raises(kind, match="must be"):
        build(client)


def test_closing_ends_calls_that_wait_for_their_turn(peer: Any) -> None:
    release = threading.Event()
    entered = peer.holds(release)
    client = mien.Client(peer.address, limits=mien.Limits(max_calls=1, max_connections=2))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.detect, b"photo") for _ in range(2)]
        assert entered.wait(10)
        client.close()
        for call in calls:
            with pytest.raises(mien.Cancelled):
                call.result(10)
    release.set()
    assert len(peer.received) == 1
