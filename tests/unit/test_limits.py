"""The page of limits is true, and the memory at worst is what it says."""

import re
from pathlib import Path

from mien_server.limits import CONNECTION_BYTES, GROUPING_BYTES, worst_case
from mien_server.settings import Settings, flag_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hardening.md").read_text("utf-8")
MIB = 1024 * 1024


def test_every_limit_is_on_the_page_with_a_metric_that_exists_and_a_test_that_does() -> None:
    rows = re.findall(r"^\|.*?\| (.*`--[a-z-]+`.*?) \|.*?\| `(\w+)` \| `([\w/.]+)` \|$", PAGE, re.M)
    flags = {flag for cell, _, _ in rows for flag in re.findall(r"`(--[a-z-]+)`", cell)}
    assert flags == {flag_of(name) for name in settings_of("Limits")} | {
        *("--default-deadline-secs", "--gallery-max-bytes")
    }
    metrics = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for _, metric, test in rows:
        assert metric in metrics or metric.startswith("process_")
        assert (ROOT / test).is_file()


def test_memory_at_worst_is_that_of_the_settings() -> None:
    settings = Settings(
        max_message_bytes=2 * MIB,
        max_image_bytes=MIB,
        max_pending_bytes=10 * MIB,
        max_pending_requests=7,
        max_health_checks=5,
    )
    assert worst_case(settings, 3) == {
        "arriving": (7 + 5) * 2 * MIB,
        "requests": 20 * MIB,
        "pictures": 20 * MIB,
        "queues": 10 * MIB,
        "connections": 3 * CONNECTION_BYTES,
        "galleries": 0,
    }
    limits = {
        "max_arriving_requests": 2,
        "max_decode_bytes": 3 * MIB,
        "max_queued_bytes": 4 * MIB,
    }
    own = worst_case(settings.model_copy(update=limits), 3)
    assert (own["arriving"], own["pictures"], own["queues"]) == (
        (2 + 5) * 2 * MIB,
        6 * MIB,
        4 * MIB,
    )


def test_galleries_in_a_folder_count_and_those_elsewhere_do_but_for_their_faces(
    tmp_path: Path,
) -> None:
    here = Settings(gallery_dir=tmp_path, gallery_max_bytes=100 * MIB)
    assert worst_case(here, 3)["galleries"] == 200 * MIB + GROUPING_BYTES
    elsewhere = Settings(gallery_url="milvus://milvus.example:19530")
    assert worst_case(elsewhere, 3)["galleries"] == GROUPING_BYTES
