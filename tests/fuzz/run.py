"""Sends damaged photos and messages to a real server, and says what it did wrong."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from mien_server.access.roles import CallerRole
from tests.fuzz.inputs import FACES, credential, crowd, enrolling, message_call, photo_call
from tools.local_access import LocalAccess, bearer
from tools.local_server import LocalServer, open_channel

TABLE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
CALLERS = 4
DEADLINE, SLACK = 30.0, 5.0
"""Seconds that a call may take, and by which its end may come late on a machine that is shared."""

UNEXPECTED = {"INTERNAL", "BACKEND_ERROR"}
"""Reasons of the table that no input may bring about."""

REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}

GROWTH = 0.10
"""Share of the memory after the first tenth by which it may grow after that."""


@dataclass
class Report:
    """What came of a run.

    Attributes:
        answers: calls by status and reason.
        wrong: what should not have been, each by the name of its input; bytes by which to try it again.
        resident: MiB of the server at rest, after each tenth.
        slowest: seconds of the slowest call, and its input's name.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, bytes] = field(default_factory=dict)
    resident: list[float] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


def table() -> set[tuple[str, str]]:
    """Status and reason of each row of the error table."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", TABLE.read_text("utf-8"), re.M)
    return set(rows)


@dataclass(frozen=True)
class FuzzCall:
    """One call.

    Attributes:
        name: by which it can be made again.
        path: of the method.
        request: its bytes.
        sent: the key or token that goes with it; "": none.
        holds: whether it is one that the server knows.
    """

    name: str
    path: str
    request: bytes
    sent: str = ""
    holds: bool = True


def fuzz(
    server: LocalServer,
    *,
    photos: int,
    messages: int,
    seed: int,
    rest: float = 5.0,
    access: LocalAccess | None = None,
) -> Report:
    """Sends so many damaged photos and messages, from a few callers at once.

    Args:
        server: one that has galleries.
        seed: of the damage.
        rest: seconds that the server gets to give memory back before it is looked at.
        access: of a server whose callers prove who they are: calls carry a key or a token, every fourth a
            damaged one, which must be refused.
    """
    report, allowed = Report(), table()
    process = psutil.Process(server.process.pid)
    roles, day = tuple(CallerRole), int(time.time()) + 86_400
    known = [access.key, access.token(roles, exp=day)] if access else []
    calls = _calls(photos, messages, seed, known)
    total = photos + messages
    with (
        open_channel(server.address, access.trusted if access else None) as channel,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        # What the largest batches take of memory, the server keeps: it is to have taken it at the start.
        large = FuzzCall("crowd", FACES + "Embed", crowd(), known[0] if known else "")
        for future in [pool.submit(_try, channel, large, allowed, report) for _ in range(CALLERS)]:
            future.result()
        for tenth in range(10):
            # Damaged calls may have deleted them.
            for path, request in enrolling():
                prepare = FuzzCall("enrolling", path, request, known[0] if known else "")
                _try(channel, prepare, allowed, report)
            count = total * (tenth + 1) // 10 - total * tenth // 10
            part = [next(calls) for _ in range(count)]
            tried = [pool.submit(_try, channel, each, allowed, report) for each in part]
            for future in tried:
                future.result()
            if server.process.poll() is not None:
                report.wrong["server"] = f"it ended with status {server.process.returncode}"
                return report
            time.sleep(rest)
            report.resident.append(process.memory_info().rss / 2**20)
        health: Any = health_pb2_grpc.HealthStub(channel)
        state = health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        if state != health_pb2.HealthCheckResponse.SERVING:
            report.wrong["health"] = "it is not SERVING at the end"
    first, most = report.resident[0], max(report.resident)
    if most > first * (1 + GROWTH):
        report.wrong["memory"] = f"it grew from {first:.0f} to {most:.0f} MiB after the first tenth"
    for line in server.log.read_text(errors="replace").splitlines():
        if re.search("CRITICAL|Traceback", line):
            report.wrong["log"] = line
    return report


def _calls(photos: int, messages: int, seed: int, known: Sequence[str]) -> Iterator[FuzzCall]:
    """The calls; photos and messages mixed evenly, the known ones first."""
    kinds: tuple[tuple[str, int, Callable[[int, int], tuple[str, bytes]]], ...] = (
        ("photo", photos, photo_call),
        ("message", messages, message_call),
    )
    places = sorted(
        ((number + 0.5) / count, name, number, make)
        for name, count, make in kinds
        for number in range(count)
    )
    for _, name, number, make in places:
        call = f"{name}-{seed}-{number}"
        sent, holds = credential(call, known) if known else ("", True)
        yield FuzzCall(call, *make(number, seed), sent, holds)


def _try(
    channel: grpc.Channel,
    call: FuzzCall,
    allowed: set[tuple[str, str]],
    report: Report,
) -> None:
    name, path, request = call.name, call.path, call.request
    method: Any = channel.unary_unary(path)
    began = time.monotonic()
    wrong = reason = ""
    try:
        method(request, timeout=DEADLINE, metadata=bearer(call.sent) if call.sent else ())
        report.answers["OK"] += 1
    except grpc.RpcError as raised:
        error: Any = raised
        code, reason = error.code().name, _reason(error)
        report.answers[f"{code} {reason}".strip()] += 1
        if (code, reason) not in allowed or reason in UNEXPECTED:
            wrong = f"{path}: {code} {reason} {error.details()}"
    if (reason in REFUSED) == call.holds:
        wrong = (
            f"{path}: {reason or 'OK'} to a credential that {'holds' if call.holds else 'does not'}"
        )
    seconds = time.monotonic() - began
    report.slowest = max(report.slowest, (seconds, name))
    if seconds > DEADLINE + SLACK:
        wrong = f"{path}: it took {seconds:.1f} s"
    if wrong:
        report.wrong[name], report.inputs[name] = wrong, request


def _reason(error: grpc.Call) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for packed in status.details if status else ():
        if packed.Unpack(info):
            return str(info.reason)
    return ""
