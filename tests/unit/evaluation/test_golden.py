"""What counts as near enough to a golden file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.models.detections import Detections
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorOptions, Embedder
from mien_server.repository import golden as goldens
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.golden import (
    BOUNDS,
    FILENAME,
    Golden,
    PrecisionError,
    applies,
    check_golden,
    make_golden,
    read_golden,
    write_golden_file,
)
from mien_server.repository.manifest import ManifestError

SHIPPED = Path(__file__).parents[3] / "model_repository"

FACE = np.array([20, 30, 60, 90], np.float32)
POINTS = np.array([[30, 50], [50, 50], [40, 60], [32, 75], [48, 75]], np.float32)


@dataclass
class Answers:
    """Answers as it is told, and remembers how many rows it got at once."""

    results: Sequence[Any]
    batches: tuple[int, ...] = ()

    def collate(self, rows: Sequence[Any]) -> Any:
        self.batches += (len(rows),)
        return sum(self.batches) - len(rows)

    def compute(self, batch: Any) -> Any:
        return batch

    def split(self, outputs: Any, rows: Sequence[Any]) -> Sequence[Any]:
        return self.results[outputs : outputs + len(rows)]


class Segmenter(Embedder):
    """A role that no family of this program has."""

    name = "segment"


class Undecided(Embedder):
    """A role that cannot tell how near an answer is."""

    def cosines(self, expected: Any, found: Any) -> Any:
        return np.full(len(expected), np.nan)


def _config(name: str) -> ModelConfig:
    config = read_config(SHIPPED / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    return config


def _faces(*faces: tuple[np.ndarray, float, np.ndarray]) -> Answers:
    boxes, scores, points = zip(*faces, strict=True) if faces else ([], [], [])
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(points, np.float32).reshape(-1, 5, 2),
    )
    return Answers([found, Detections(*(part[:0] for part in found))])


def _detector() -> Golden:
    far = FACE + 100
    found = _faces((FACE, 0.9, POINTS), (far, 0.8, POINTS + 100), (FACE + 200, 0.5, POINTS + 200))
    golden = make_golden(_config("retinaface"), found)
    assert golden is not None
    return golden


def test_embedders_get_two_faces_and_their_mirror_images_in_batches_that_they_take() -> None:
    config = _config("sface")
    pictures = config.role.golden_pictures(config.options)
    assert pictures.shape == (4, 112, 112, 3)
    np.testing.assert_array_equal(pictures[1], pictures[0][:, ::-1])
    vectors = list(np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32))
    golden = make_golden(config, Answers(vectors))
    assert golden is not None
    other = Answers([2 * vectors[0], -vectors[1], np.full(128, np.nan), np.zeros(128)])
    assert golden.cosines(other, batch=3) == pytest.approx([1, -1, 0, 0])
    assert other.batches == (3, 1)
    assert golden.cosines(Answers([v[:64] for v in vectors]), batch=4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("buckets", "side"), [((640, 1024), 640), ((96,), 96)])
def test_detectors_get_canvases_of_their_smallest_side(buckets: tuple[int, ...], side: int) -> None:
    assert DETECTOR.golden_pictures(DetectorOptions(buckets)).shape == (2, side, side, 3)


def test_faces_that_a_detector_is_not_sure_of_are_no_reference() -> None:
    assert _detector().expected[:, 5].tolist() == pytest.approx([0.9, 0.8])
    assert make_golden(_config("retinaface"), _faces((FACE, 0.6, POINTS))) is None


def test_a_detector_is_near_if_every_face_is_where_it_was() -> None:
    golden = _detector()
    near = _faces((FACE + 100.2, 0.8, POINTS + 100.2), (FACE, 0.88, POINTS))
    assert (golden.cosines(near, 1) > BOUNDS["bf16"]).all()


@pytest.mark.parametrize(
    "first",
    [
        (FACE + np.array([0, 0, 0, 12]), 0.9, POINTS),
        (FACE, 0.9, POINTS[[1, 0, 2, 3, 4]]),
        (FACE, 0.4, POINTS),
        (FACE + 15, 0.9, POINTS + 15),
    ],
)
def test_a_face_that_is_larger_or_elsewhere_or_less_sure_is_not_near(first: Any) -> None:
    cosines = _detector().cosines(_faces(first, (FACE + 100, 0.8, POINTS + 100)), 1)
    assert cosines[0] < BOUNDS["int8"]
    assert cosines[1] == pytest.approx(1)


def test_a_face_in_another_picture_is_another_face() -> None:
    golden, found = _detector(), _faces((FACE, 0.9, POINTS), (FACE + 100, 0.8, POINTS + 100))
    assert golden.cosines(found, 2) == pytest.approx([1, 1])
    found = Answers(found.results[::-1])
    assert golden.cosines(found, 2).tolist() == [0, 0]


def test_a_lost_face_counts_as_nothing_and_is_refused_with_both_figures() -> None:
    golden = _detector()
    assert golden.cosines(_faces(), 1).tolist() == [0, 0]
    check_golden(golden, _faces(*2 * [(FACE, 0.9, POINTS)], (FACE + 100, 0.8, POINTS + 100)), 1,
                 precision="fp32", device="cpu")  # fmt: skip
    with pytest.raises(PrecisionError, match=r"in bf16 on cuda:0 .* 0\.000000 .* bound of 0\.999:"):
        check_golden(golden, _faces(), 1, precision="bf16", device="cuda:0")


def test_an_answer_may_be_as_far_away_as_the_bound_says() -> None:
    assert BOUNDS == {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
    config = _config("sface")
    vectors = [np.array(v, np.float32) for v in np.eye(4, 128)]
    golden = make_golden(config, Answers(vectors))
    assert golden is not None
    same = replace(golden, expected=2 * golden.expected)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BOUNDS, "fp32", 1.0)
        check_golden(same, Answers(vectors), 4, precision="fp32", device="cpu")
    with pytest.raises(PrecisionError, match=r"cosine of nan"):
        check_golden(replace(golden, role=Undecided()), Answers(vectors), 4, precision="fp32",
                     device="cpu")  # fmt: skip


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / FILENAME).open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ManifestError, match="is larger than 64 MiB"):
        read_golden(tmp_path)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    golden = _detector()
    assert read_golden(tmp_path) is None
    write_golden_file(tmp_path, golden)
    read = read_golden(tmp_path)
    assert read is not None
    np.testing.assert_array_equal(read.pictures, golden.pictures)
    np.testing.assert_array_equal(read.expected, golden.expected)
    assert (read.role, read.input) == (golden.role, golden.input)
    assert (tmp_path / FILENAME).stat().st_mode & 0o444 == 0o444


def test_a_file_cut_short_while_it_is_read_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, golden = tmp_path / FILENAME, _detector()
    write_golden_file(tmp_path, golden)

    def cut_short(*arguments: Any) -> Golden:
        assert str(path) not in Path("/proc/self/maps").read_text(), "reading on would be SIGBUS"
        os.truncate(path, 0)
        return Golden(*arguments)

    monkeypatch.setattr(goldens, "Golden", cut_short)
    read = read_golden(tmp_path)
    assert read is not None
    np.testing.assert_array_equal(read.pictures, golden.pictures)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILENAME).mkdir()
    with pytest.raises(ManifestError, match=rf"{FILENAME} cannot be read: Is a directory"):
        read_golden(tmp_path)


def test_it_applies_only_to_pixels_that_are_prepared_alike() -> None:
    golden, config = _detector(), _config("retinaface")
    assert applies(golden, config)
    assert not applies(golden, _config("sface"))
    swapped = replace(config.normalisation, channel_order="RGB")
    assert not applies(golden, replace(config, normalisation=swapped))


@pytest.mark.parametrize(
    "changes",
    [
        {"role": Segmenter()},
        {"role": EMBEDDER, "expected": np.zeros((3, 16), np.float32)},
        {"pictures": np.zeros((1, 32, 64, 3), np.uint8)},
        {"pictures": np.zeros((1, 320, 320, 3), np.float32)},
        {"expected": np.zeros((2, 15), np.float32)},
        {"expected": np.full((2, 16), 7, np.float32)},
        {"expected": np.zeros((0, 16), np.float32)},
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, changes: Any) -> None:
    write_golden_file(tmp_path, replace(_detector(), **changes))
    with pytest.raises(ManifestError, match="is no golden file"):
        read_golden(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILENAME).write_bytes(b"\x80\x04.")
    with pytest.raises(ManifestError, match="is no golden file"):
        read_golden(tmp_path)
