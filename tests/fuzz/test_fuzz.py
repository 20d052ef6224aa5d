"""A short run of `make fuzz`, and that its inputs come again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mien_server.access.roles import METHODS, OPEN
from mien_server.errors import Reason
from tests.fuzz.inputs import enrolling, message_call, once_failed, photo_call, sound_messages
from tests.fuzz.run import CALLERS, fuzz, table
from tests.integration.access_rig import served_methods
from tools.local_access import LocalAccess
from tools.local_server import LocalServer


@pytest.mark.long
@pytest.mark.parametrize("authenticated", [False, True], ids=["open", "authenticated"])
def test_damaged_photos_and_messages_bring_about_nothing_that_is_not_in_the_table(
    authenticated: bool,
    launch_server: Callable[..., AbstractContextManager[LocalServer]],
    tmp_path: Path,
) -> None:
    galleries = str(tmp_path / "galleries")
    flags, access = ["--access-log", "false", "--gallery-dir", galleries], None
    if authenticated:
        access = LocalAccess(tmp_path)
        flags += [*access.key_flags, *access.tls_flags]
    with launch_server(*flags, trusted=access.trusted if access else None) as server:
        report = fuzz(server, photos=200, messages=200, seed=7, rest=0.0, access=access)
    # In so short a run memory only warms up.
    report.wrong.pop("memory", None)
    assert report.wrong == {}
    # They begin with a crowd each, and make the galleries.
    assert report.answers.total() == 400 + CALLERS + 10 * len(enrolling())
    refused = report.answers["UNAUTHENTICATED UNAUTHENTICATED"]
    assert (70 < refused < 130) == authenticated
    assert report.answers["OK"] > 20
    assert report.answers["INVALID_ARGUMENT INVALID_IMAGE"] > 40


def test_every_method_that_asks_who_calls_has_a_sound_request() -> None:
    streams = {method for method, (sends, _) in served_methods().items() if sends}
    assert {path for path, _ in sound_messages()} == {
        method for method, needed in METHODS.items() if needed != OPEN and method not in streams
    }


def test_inputs_come_again_by_their_numbers() -> None:
    for make in (photo_call, message_call):
        first = [make(number, 3) for number in range(40, 60)]
        assert first == [make(number, 3) for number in range(40, 60)]
        assert len(set(first)) > 15
        assert first != [make(number, 4) for number in range(40, 60)]
    requests = [photo_call(number, 3)[1] for number in range(len(once_failed()))]
    assert all(
        known in request for known, request in zip(once_failed().values(), requests, strict=True)
    )


def test_table_has_the_rows_of_the_page() -> None:
    assert ("INVALID_ARGUMENT", "INVALID_IMAGE") in table()
    assert {reason for _, reason in table()} == set(Reason) - {Reason.LOW_QUALITY}
