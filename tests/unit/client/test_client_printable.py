"""What others have written reaches no terminal raw."""

from pathlib import Path

import pytest

from mien.printable import printable
from mien.progress import Tally
from mien.tables import aligned


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ann", "ann"),
        ("山田\u3000太郎 é", "山田\u3000太郎 é"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2Jann\x9b31m", "\\x1b[2Jann\\x9b31m"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u202egnp", "a\\u202egnp"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_tables_and_failures_have_no_raw_names() -> None:
    hostile = "\x1b]0;title\x07\nbob"
    table = aligned(["person", "faces"], [[hostile, "1"], ["ann", "12"]], left={0})
    head, first, second = table.split("\n")
    assert "\x1b" not in table
    assert len(head) == len(first) == len(second)
    tally = Tally()
    tally.fail(Path(hostile), OSError(5, "cannot be read"))
    (line,) = tally.lines()
    assert "\x1b" not in line
    assert "\n" not in line
