"""The command `mien` as other programs use it: one JSON document, errors on stderr, exit status."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import run_mien
from tools.local_server import PROGRAM

MIEN = PROGRAM.with_name("mien")
LANDMARKS = {"left_eye", "right_eye", "nose", "left_mouth", "right_mouth"}
Sample = Callable[[str], Path]


def mien(address: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MIEN, "--address", address, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answer(address: str, *arguments: str | Path) -> Any:
    """What a command prints that ends well; in this process, for that its end is one is seen elsewhere."""
    status, printed, said = run_mien("--address", address, "--json", *map(str, arguments))
    assert (status, said) == (0, "")
    return json.loads(printed)


def test_detect_prints_a_list_of_faces(server_address: str, sample: Sample) -> None:
    [face] = answer(server_address, "detect", sample("person_a_2"))

    x1, y1, x2, y2 = face["box"]
    with Image.open(sample("person_a_2")) as photo:
        assert 0 <= x1 < x2 <= photo.width
        assert 0 <= y1 < y2 <= photo.height
    assert 0.9 < face["score"] <= 1
    assert set(face["landmarks"]) == LANDMARKS
    assert all(x1 < x < x2 and y1 < y < y2 for x, y in face["landmarks"].values())


def test_detect_prints_an_empty_list_for_a_photo_without_faces(
    server_address: str, tmp_path: Path
) -> None:
    Image.new("RGB", (320, 240), "grey").save(tmp_path / "grey.png")

    assert answer(server_address, "detect", tmp_path / "grey.png") == []


def test_detect_draws_into_a_picture_of_the_photos_size(
    server_address: str, sample: Sample, tmp_path: Path
) -> None:
    done = mien(server_address, "detect", sample("person_b_1"), "--out", tmp_path / "drawn.png")

    assert done.returncode == 0, done.stderr
    with Image.open(sample("person_b_1")) as photo, Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == photo.size
        assert np.asarray(drawn.convert("RGB")).tobytes() != np.asarray(photo).tobytes()


def test_embed_prints_a_unit_vector_its_norm_and_its_model(
    server_address: str, sample: Sample
) -> None:
    face = answer(server_address, "embed", sample("impostor_1"))

    assert len(face["embedding"]) == 128
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-3)
    assert face["norm"] > 0
    assert face["model"]["name"] == "sface"
    assert face["model"]["version"] == 1
    assert len(bytes.fromhex(face["model"]["fingerprint"])) == 8


@pytest.mark.parametrize(
    ("other", "matched"), [("person_b_2", True), ("impostor_2", False)], ids=["same", "different"]
)
def test_verify_prints_the_verdict_and_exits_with_0_either_way(
    server_address: str, sample: Sample, other: str, matched: bool
) -> None:
    comparison = answer(server_address, "verify", sample("person_b_1"), sample(other))

    assert comparison["matched"] is matched
    assert comparison["threshold"] == pytest.approx(0.363)
    assert (comparison["similarity"] >= comparison["threshold"]) is matched
    assert comparison["model"]["name"] == "sface"


def test_a_failure_is_json_with_code_and_reason_on_standard_error(
    server_address: str, tmp_path: Path
) -> None:
    (tmp_path / "letter.jpg").write_text("no photo")

    done = mien(server_address, "--json", "embed", tmp_path / "letter.jpg")

    assert done.returncode == 1
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "INVALID_IMAGE")


def test_no_server_is_a_failure_that_says_how_to_start_one(sample: Sample) -> None:
    done = mien("127.0.0.1:9", "--json", "detect", sample("impostor_1"))

    assert done.returncode == 1
    error = json.loads(done.stderr)
    assert error["code"] == "UNAVAILABLE"
    assert "mien-server serve" in error["message"]
