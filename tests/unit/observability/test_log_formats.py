"""The two log formats, and the limit on repeated warnings."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from mien_server.observability.logging import RateLimit, configure_logging

logger = logging.getLogger("mien_server.tests.log_formats")


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


def test_text_line_carries_its_facts() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    logger.info("ready %s", "now", extra={"address": "127.0.0.1:8001", "seconds": 1.5})
    line = stream.getvalue()
    assert line.endswith(f"Z INFO {logger.name}: ready now address=127.0.0.1:8001 seconds=1.5\n")


def test_text_of_a_caller_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    logger.info("refused: %s", "x\r\n2026-01-01 INFO all is well", extra={"name_": "a\nb"})
    assert stream.getvalue().count("\n") == 1


def test_text_of_a_caller_cannot_forge_a_fact() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    logger.info("audit", extra={"caller": 'x outcome=OK "', "method": "/a.B/C", "reason": ""})
    line = stream.getvalue()
    assert line.endswith('audit caller="x outcome=OK \\"" method=/a.B/C reason=\n')


def test_json_line_carries_facts_and_traceback() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    error = ValueError("why")
    logger.error("call failed", exc_info=error, extra={"incident": "abc", "path": {1}})
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"], line["incident"]) == ("error", "call failed", "abc")
    assert line["logger"] == logger.name
    assert "ValueError: why" in line["exception"]


def test_lines_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure_logging("warning", "text", stream)
    logger.info("unheard")
    assert stream.getvalue() == ""


def test_grpc_repeats_no_metadata() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    grpcs.error("Invalid encoding on %s", b"Bearer secret\xff")
    grpcs.error("Unexpected exception in the handler")
    assert "Unexpected" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def record(level: int, template: str, at: float) -> logging.LogRecord:
    made = logging.makeLogRecord({"levelno": level, "msg": template})
    made.created = at
    return made


def test_repeated_warnings_are_limited_and_counted() -> None:
    limit = RateLimit(burst=2, seconds=10)
    passed = [limit.filter(record(logging.WARNING, "full", 0.1 * n)) for n in range(5)]
    assert passed == [True, True, False, False, False]
    later = record(logging.WARNING, "full", 11)
    assert limit.filter(later)
    assert vars(later)["suppressed"] == 3


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.ERROR])
def test_what_was_dropped_is_told_once_by_the_next_line_of_any_kind(level: int) -> None:
    limit = RateLimit(burst=1, seconds=10)
    for _ in range(4):
        limit.filter(record(logging.WARNING, "full", 0))
    told, silent = record(level, "other", 1), record(logging.ERROR, "other", 2)
    assert limit.filter(told)
    assert limit.filter(silent)
    assert vars(told)["suppressed"] == 3
    assert "suppressed" not in vars(silent)


def test_errors_are_never_dropped() -> None:
    limit = RateLimit(burst=1, seconds=10)
    assert all(limit.filter(record(logging.ERROR, "failed", 0)) for _ in range(50))
