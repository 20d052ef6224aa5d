"""The map from errors to statuses: every class has its row, and nothing leaks."""

from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from mien_server import errors
from mien_server.errors import MienError, Reason
from mien_server.rpc.status import MAX_FIELD_BYTES, MAX_MESSAGE_BYTES, fault_of
from mien_server.scheduling import errors as scheduling

ERRORS_PAGE = Path(__file__).resolve().parents[3] / "docs" / "errors.md"


def leaves(kind: type[Exception]) -> list[type[Exception]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return below or [kind]


@pytest.mark.parametrize("kind", leaves(MienError))
def test_every_request_error_has_a_code(kind: type[Exception]) -> None:
    takes_reason = kind in (
        errors.InvalidRequest,
        errors.Unmet,
        errors.NotInGallery,
        errors.AlreadyInGallery,
    )
    error = kind(Reason.INVALID_IMAGE, "why") if takes_reason else kind("why")
    assert fault_of(error).code is not grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", leaves(scheduling.SchedulingError))
def test_every_scheduling_error_has_a_row(kind: type[Exception]) -> None:
    extra: dict[type[Exception], dict[str, object]] = {
        scheduling.QueueFull: {"retry_after": 1.0},
        scheduling.RowFailed: {"incident": "abc"},
    }
    assert not fault_of(kind("why", **extra.get(kind, {}))).unexpected


def test_errors_page_lists_every_reason() -> None:
    page = ERRORS_PAGE.read_text("utf-8")
    for reason in Reason:
        assert f"| `{reason}` |" in page, reason


def test_unexpected_error_tells_the_caller_an_incident_and_nothing_else() -> None:
    fault = fault_of(RuntimeError("password=hunter2"))
    assert (fault.code, fault.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert fault.incident in fault.message
    ((_, wire),) = fault.trailing_metadata()
    assert isinstance(wire, bytes)
    assert b"hunter2" not in wire + fault.message.encode()


def test_stray_timeout_is_a_defect_and_no_deadline() -> None:
    assert fault_of(TimeoutError()).unexpected


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\ud800" * 1000])
def test_message_that_quotes_a_huge_request_fits_in_metadata(text: str) -> None:
    fault = fault_of(errors.ModelNotFound(text, field=f"parameters.{text}"))
    assert 500 < len(fault.message.encode()) <= MAX_MESSAGE_BYTES
    assert 100 < len(fault.field.encode()) <= MAX_FIELD_BYTES
    assert len(fault.trailing_metadata()[0][1]) < 4096


def test_message_is_cut_only_beyond_its_limit_and_says_so() -> None:
    fits = "x" * MAX_MESSAGE_BYTES
    assert fault_of(errors.ModelNotFound(fits)).message == fits
    cut = fault_of(errors.ModelNotFound(fits + "x")).message
    assert cut == fits[:-3] + "…"
    assert len(cut.encode()) == MAX_MESSAGE_BYTES


def test_retry_delay_keeps_its_fraction() -> None:
    fault = fault_of(scheduling.QueueFull("full", retry_after=0.25))
    ((_, wire),) = fault.trailing_metadata()
    assert isinstance(wire, bytes)
    sent = status_pb2.Status.FromString(wire)
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in sent.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 0.25
