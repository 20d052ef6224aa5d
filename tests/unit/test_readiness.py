"""What the health service says while the models change, or cannot be asked."""

import asyncio
import logging
import threading
import time
from ipaddress import IPv4Address
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from mien_server import app
from mien_server.observability.call_metrics import CallMetrics
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.versions import VersionStatus
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import RpcServer
from mien_server.settings import Settings
from mien_server.threads import Threads


class Models:
    """Answers as it is told to, or raises."""

    def __init__(self) -> None:
        self.answer: dict[str, str] | Exception = {}
        self.probes = 0

    def unready(self, needed: object, *, strict: bool) -> dict[str, str]:
        self.probes += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def statuses(self) -> list[VersionStatus]:
        return []


async def test_failed_probe_is_not_serving_and_a_log_line_and_the_next_one_follows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "READINESS_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    models = Models()
    server = RpcServer(
        address=IPv4Address("127.0.0.1"),
        port=0,
        max_message_bytes=1 << 20,
        intake=Intake(max_calls=1, max_bytes=1),
        metrics=CallMetrics(CollectorRegistry()),
    )

    assert server.unready == {"server": "it is loading its models"}

    async def after(answer: dict[str, str] | Exception) -> bool:
        """What the health service says once the models have answered a few times."""
        models.answer, enough = answer, models.probes + 5
        async with asyncio.timeout(10):
            while models.probes < enough:  # noqa: ASYNC110 - nobody tells of a probe
                await asyncio.sleep(0.001)
        return server.ready

    catalogue, threads = cast(Catalogue, models), Threads()
    watching = asyncio.create_task(
        app.watch_readiness(server, catalogue, threads, Settings(), time.monotonic())
    )
    assert await after({})
    assert server.unready == {}
    assert not await after({"sface": "it sleeps"})
    assert server.unready == {"sface": "it sleeps"}
    assert await after({})
    assert not await after(RuntimeError("the lock is gone"))
    assert server.unready == {"server": "its models cannot be asked"}
    assert await after({})

    end, deaths = threading.Event(), [SystemExit("killed")]

    def die_once() -> None:
        if deaths:
            raise deaths.pop()
        end.wait(30)

    kept = threads.start("mien-vital", die_once)
    assert not await after({})
    end.set()
    kept.join()
    assert await after({})
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await server.stop(lame_duck=0, grace=0)
    assert server.unready == {"server": "it is stopping"}
    await server.close()
    told = [record.getMessage() for record in caplog.records if record.name == app.__name__]
    assert told[::2] == ["ready"] * 4
    assert told[1] == "not ready: sface: it sleeps"
    assert "cannot be asked" in told[3]
    assert "the lock is gone" in caplog.text
    assert told[5] == "not ready: thread mien-vital: died of SystemExit('killed')"
