"""Reading the W3C's Server-Timing."""

import pytest

from mien.timing import StageTiming, parse_server_timing


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("", ()),
        ("decode;dur=3.1", (StageTiming("decode", 3.1),)),
        (
            "decode;dur=3.1, detect.queue;dur=0.2, detect.compute;dur=9.5;batch=4",
            (
                StageTiming("decode", 3.1),
                StageTiming("detect.queue", 0.2),
                StageTiming("detect.compute", 9.5, batch=4),
            ),
        ),
        ("a;dur=1,a;dur=2", (StageTiming("a", 1), StageTiming("a", 2))),
        ("a ; DUR = 1 ; Batch = 2", (StageTiming("a", 1, batch=2),)),
        ('a;desc="to, a; wait";dur=1e-3', (StageTiming("a", 0.001),)),
        ('a;dur="4"', (StageTiming("a", 4),)),
        ("miss, db;dur=53", (StageTiming("db", 53),)),
        ("a;dur=fast, b;dur=1", (StageTiming("b", 1),)),
        ("a;dur=1;batch=many, b;dur=1", (StageTiming("b", 1),)),
        (",;=,", ()),
    ],
)
def test_server_timing(header: str, stages: tuple[StageTiming, ...]) -> None:
    assert parse_server_timing(header) == stages
