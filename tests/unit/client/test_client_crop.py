"""`mien crop`: which files it writes, and what it refuses before any call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien.alignment import aligned_crop
from mien.results import Landmarks, Point
from mien.v1 import face_pb2 as pb
from mien_server.pipeline.align import TEMPLATE, crop_faces

Run = Callable[..., tuple[int, str, str]]
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


def located(points: "np.ndarray[Any, Any]") -> pb.Face:
    """A face with these landmarks [5, 2]."""
    named = {name: pb.Point(x=x, y=y) for name, (x, y) in zip(NAMES, points, strict=True)}
    return pb.Face(score=0.9, box=pb.Box(x2=99, y2=99), landmarks=pb.Landmarks(**named))


def answering(*faces: pb.Face) -> Callable[[Any, Any], pb.DetectResponse]:
    return lambda *_: pb.DetectResponse(faces=faces, image_width=200, image_height=200)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (200, 200), "gray").save("a.jpg")
    return Path("a.jpg")


@pytest.mark.parametrize("size", [0.4, 1.0, 1.7, 2.5, 6.0])
@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_crop_is_the_servers(size: float, turn: float) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((1500, 1500), Image.Resampling.BICUBIC)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (TEMPLATE @ rotation.T) * size + [500, 300]
    landmarks = Landmarks(*(Point(float(x), float(y)) for x, y in points))
    crop = aligned_crop(picture, landmarks)
    assert crop is not None
    (expected,) = crop_faces(np.asarray(picture), points[None].astype(np.float32))
    difference = np.abs(np.asarray(crop, np.int16) - expected)[3:-3, 3:-3]
    assert difference.mean() < 1
    assert difference.max() <= 6


def test_landmarks_on_a_line_are_no_face() -> None:
    line = Landmarks(*(Point(10.0 + n, 20.0 + n) for n in range(5)))
    assert aligned_crop(Image.new("RGB", (99, 99)), line) is None


def test_the_largest_face_has_the_photos_name_and_all_are_numbered(
    run: Run, peer: Any, photo: Path
) -> None:
    peer.script.extend([answering(located(TEMPLATE))])
    status, output, errors = run("crop", str(photo), "--out", "out", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == [{"photo": "a.jpg", "crops": ["out/a.png"], "error": None}]
    assert peer.received[-1].request.selection.policy == pb.FACE_POLICY_LARGEST
    peer.script.extend([answering(located(TEMPLATE), located(TEMPLATE + 40))])
    status, output, _ = run("crop", str(photo), "--out", "out", "--all")
    assert (status, output) == (0, "1 photos, 2 faces: out\n")
    assert {path.name for path in Path("out").iterdir()} == {"a.png", "a_1.png", "a_2.png"}


def test_a_photo_without_a_crop_fails_and_is_named(run: Run, peer: Any, photo: Path) -> None:
    peer.script.extend([answering()])
    status, output, errors = run("crop", str(photo), "gone.jpg", "--out", "out")
    assert status == 1
    assert output == "2 photos, 0 faces, 2 failed: out\n"
    assert errors == (
        "mien: a.jpg: no face that could be aligned\nmien: gone.jpg: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jpg", "sub/a.png", "--out", "out"], "two photos would be out/a.png"),
        (["empty", "--out", "out"], "no file in empty ends in one of"),
        (["sub", "--out", "sub"], "would overwrite the photos"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_call(
    run: Run,
    peer: Any,
    photo: Path,
    arguments: list[str],
    said: str,
) -> None:
    for folder in ("empty", "sub"):
        Path(folder).mkdir()
    Image.new("RGB", (9, 9)).save("sub/a.png")
    status, output, errors = run("crop", *arguments)
    assert (status, output) == (2, "")
    assert said in errors
    assert not peer.received
