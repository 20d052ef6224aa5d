"""The generator that bench uses, against a real server."""

from random import Random

from bench.peers.workloads import EMBED
from loadtest.connections import GrpcConnection, calls_of
from mien_server.load.loops import closed_loop, open_loop
from mien_server.load.shapes import arrivals, steady


async def test_a_closed_and_an_open_loop_are_answered_without_failures(server_address: str) -> None:
    connection = GrpcConnection(server_address, timeout=30)
    calls = calls_of(connection, EMBED.path, EMBED.requests)
    try:
        await calls(0)  # connects
        closed = await closed_loop(calls, steady(4, 1.0))
        dues = arrivals(steady(5, 1.0), Random(0))  # noqa: S311
        opened = await open_loop(calls, dues)
    finally:
        await connection.close()

    for load in (closed, opened):
        summary = load.tally.summary(load.seconds)
        assert summary.failures == {}
        assert summary.calls > 0
        assert summary.rate > 0
        assert 0 < summary.p50_ms <= summary.p95_ms <= summary.p99_ms
        assert summary.queue_ms is not None
        assert summary.batch is not None
        assert summary.batch >= 1


async def test_failures_are_counted_by_their_reason(server_address: str) -> None:
    connection = GrpcConnection(server_address, timeout=30)
    nowhere = GrpcConnection("127.0.0.1:9", timeout=2)
    try:
        refused = await open_loop(calls_of(connection, EMBED.path, [b""]), [0.0, 0.01])
        unheard = await open_loop(calls_of(nowhere, EMBED.path, EMBED.requests), [0.0])
    finally:
        await connection.close()
        await nowhere.close()

    assert refused.tally.summary().error_rate == 1
    assert sum(refused.tally.failures.values()) == 2
    assert set(unheard.tally.failures) == {"SERVER_UNREACHABLE"}
