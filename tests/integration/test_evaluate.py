"""`mien-server evaluate` on small data sets made of the sample portraits."""

import asyncio
import io
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from mien_server.commands.main import main
from mien_server.evaluation.loaded import load_models
from mien_server.models.families import find_family
from mien_server.models.roles import DETECTOR
from mien_server.pipeline.align import crop_faces
from mien_server.pipeline.types import (
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ModelRef,
    PhotoFaces,
)
from mien_server.settings import Settings
from tests.integration.repository_rig import lighten

PEOPLE = {
    "Ann": ("person_a_1", "person_a_2"),
    "Bea": ("person_b_1", "person_b_2"),
    "Cid": ("impostor_1",),
    "Dan": ("impostor_2",),
}
Evaluate = Callable[..., Any]
LARGEST = FaceSelection(FacePolicy.LARGEST)


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real models, in fp32 so that figures can be compared."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("sface", "retinaface"):
        shutil.copytree(
            model_repository_path / name, folder / name, ignore=shutil.ignore_patterns(".*")
        )
    config = folder / "sface" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "fp32"'))
    return lighten(folder)


@pytest.fixture
def evaluate(repository: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Runs an evaluation and gives its JSON."""

    def run(*arguments: object) -> Any:
        flags = ["--json", "--model-repository", str(repository)]
        assert main(["evaluate", *map(str, arguments), *flags]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="module")
def people(sample: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LFW's layout: every portrait and its mirror image, numbered from 1."""
    root = tmp_path_factory.mktemp("people")
    for person, portraits in PEOPLE.items():
        (root / person).mkdir()
        pictures: list[Image.Image] = []
        for portrait in portraits:
            with Image.open(sample(portrait)) as file:
                photo = file.convert("RGB")
            photo.thumbnail((320, 320))  # quick to decode, and found on the smallest canvas
            pictures += [photo, ImageOps.mirror(photo)]
        for number, picture in enumerate(pictures, 1):
            picture.save(root / person / f"{person}_{number:04d}.png")
    return root


Numbered = tuple[str, int]


def _every_pair() -> list[tuple[Numbered, Numbered, bool]]:
    """Every pair of pictures, those of one person first."""
    pictures = [
        (person, number)
        for person, portraits in PEOPLE.items()
        for number in range(1, 2 * len(portraits) + 1)
    ]
    pairs = [(a, b, a[0] == b[0]) for a, b in itertools.combinations(pictures, 2)]
    return sorted(pairs, key=lambda pair: not pair[2])


def _file(picture: Numbered) -> str:
    person, number = picture
    return f"{person}/{person}_{number:04d}.png"


@pytest.fixture(scope="module")
def csv_pairs(people: Path) -> Path:
    """Every pair, as CSV."""
    path = people / "pairs.csv"
    path.write_text("".join(f"{_file(a)},{_file(b)},{same:d}\n" for a, b, same in _every_pair()))
    return path


async def _detect(
    repository: Path, photos: list[bytes], selection: FaceSelection
) -> list[PhotoFaces]:
    settings = Settings(model_repository=(repository,))
    with load_models(settings, {DETECTOR: ModelRef("retinaface")}) as running:
        return [
            await running.pipeline.detect(
                EncodedImage(photo),
                detector=ModelRef("retinaface"),
                selection=selection,
                call=Call(),
            )
            for photo in photos
        ]


@pytest.fixture(scope="module")
def crops(repository: Path, people: Path) -> dict[str, np.ndarray]:
    """The aligned face of every picture."""
    names = sorted({_file(p) for pair in _every_pair() for p in pair[:2]})
    photos = [(people / name).read_bytes() for name in names]
    found = asyncio.run(_detect(repository, photos, LARGEST))
    crops = {}
    for name, photo, faces in zip(names, photos, found, strict=True):
        landmarks = faces.faces[0].landmarks
        assert landmarks is not None
        pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
        crops[name] = crop_faces(pixels, landmarks[None])[0]
    return crops


@pytest.fixture(scope="module")
def similarities(repository: Path, crops: dict[str, np.ndarray]) -> list[float]:
    """The cosine of every pair, straight from the network."""
    network = find_family("sface").network()
    network.load_state_dict(load_file(repository / "sface" / "1" / "model.safetensors"))
    vectors = {}
    with torch.no_grad():
        for name, crop in crops.items():
            pixels = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
            vector = network((pixels - 127.5) / 128)[0].double()
            vectors[name] = vector / vector.norm()
    return [float(vectors[_file(a)] @ vectors[_file(b)]) for a, b, _ in _every_pair()]


def _best(pairs: list[tuple[float, bool]]) -> tuple[float, float]:
    """Lowest and highest threshold, among the pairs' own cosines, with the most of them right."""
    right = {t: sum((s >= t) == same for s, same in pairs) for t, _ in pairs}
    best = [t for t in right if right[t] == max(right.values())]
    return min(best), max(best)


@pytest.mark.long
def test_the_figures_are_those_of_the_naive_formulas(
    evaluate: Evaluate, csv_pairs: Path, similarities: list[float]
) -> None:
    report = evaluate("verification", "--pairs", csv_pairs)
    same = [pair[2] for pair in _every_pair()]
    pairs = list(zip(similarities, same, strict=True))
    genuine, impostor = ([s for s, is_same in pairs if is_same is kind] for kind in (True, False))
    assert report["pairs"] == {
        "source": "pairs.csv",
        "genuine": len(genuine),
        "impostor": len(impostor),
        "left_out": 0,
    }
    assert report["failures"] == []
    assert report["embedder"]["name"] == "sface"
    assert report["detector"]["name"] == "retinaface"

    low, high = _best(pairs)
    assert max(s for s, _ in pairs if s < low) - 1e-4 <= report["best"]["threshold"] <= high + 1e-4
    configured = report["configured"]
    assert configured["threshold"] == 0.363
    assert configured["accuracy"] == pytest.approx(np.mean([(s >= 0.363) == k for s, k in pairs]))
    assert configured["tar"] == pytest.approx(np.mean([s >= 0.363 for s in genuine]))
    assert configured["far"] == pytest.approx(np.mean([s >= 0.363 for s in impostor]))

    tenth, *rest = report["tar_at_far"]
    allowed = len(impostor) // 10
    assert tenth["threshold"] == pytest.approx(sorted(impostor)[-1 - allowed], abs=1e-4)
    assert tenth["tar"] == pytest.approx(
        np.mean([s > sorted(impostor)[-1 - allowed] for s in genuine])
    )
    assert [entry["insufficient_data"] for entry in rest] == [True, True, True]
    assert [entry["impostor_pairs_needed"] for entry in rest] == [300, 3000, 30000]

    # The pairs of each kind are dealt out over ten folds in turn, and the kinds stand one after the other.
    folds = [i % 10 for i in range(len(genuine))] + [i % 10 for i in range(len(impostor))]
    scores = []
    for fold in range(10):
        others = [pair for pair, f in zip(pairs, folds, strict=True) if f != fold]
        own = [pair for pair, f in zip(pairs, folds, strict=True) if f == fold]
        threshold = report["accuracy"]["thresholds"][fold]
        right = sum((s >= threshold) == is_same for s, is_same in others)
        assert right == sum((s >= _best(others)[0]) == is_same for s, is_same in others)
        scores.append(np.mean([(s >= threshold) == is_same for s, is_same in own]))
    assert report["accuracy"]["mean"] == pytest.approx(np.mean(scores))
    assert report["accuracy"]["std"] == pytest.approx(np.std(scores))


@pytest.mark.long
def test_lfw_and_csv_and_a_bin_of_the_crops_agree(
    evaluate: Evaluate,
    people: Path,
    csv_pairs: Path,
    crops: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    pairs = _every_pair()
    genuine = [(a, b) for a, b, same in pairs if same]
    impostor = [(a, b) for a, b, same in pairs if not same][: len(genuine)]
    lines = [f"{a[0]}\t{a[1]}\t{b[1]}" for a, b in genuine]
    lines += [f"{a[0]}\t{a[1]}\t{b[0]}\t{b[1]}" for a, b in impostor]
    lfw = tmp_path / "pairs.txt"
    lfw.write_text("\n".join([f"{len(genuine)}", *lines]))
    listed = people / "same.csv"
    rows = [(*pair, 1) for pair in genuine] + [(*pair, 0) for pair in impostor]
    listed.write_text("".join(f"{_file(a)},{_file(b)},{label}\n" for a, b, label in rows))
    packed = tmp_path / "faces.bin"
    encoded = []
    for a, b, _ in rows:
        for picture in (a, b):
            data = io.BytesIO()
            Image.fromarray(crops[_file(picture)]).save(data, "PNG")
            encoded.append(data.getvalue())
    packed.write_bytes(pickle.dumps((encoded, [label == 1 for *_, label in rows]), protocol=2))

    reports = [
        evaluate("verification", "--pairs", lfw, "--images", people),
        evaluate("verification", "--pairs", listed),
        evaluate("verification", "--pairs", packed),
    ]
    for report in reports:
        assert report["pairs"]["genuine"] == report["pairs"]["impostor"] == len(genuine)
        assert report["best"] == pytest.approx(reports[0]["best"], abs=1e-4)
        assert report["configured"] == pytest.approx(reports[0]["configured"])
    assert "detector" not in reports[2]


@pytest.mark.long
def test_pictures_that_fail_are_listed_and_their_pairs_left_out(
    evaluate: Evaluate,
    people: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "wall.png")
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("Ann/Ann_0001.png", "Ann/Ann_0003.png", "Bea/Bea_0001.png"):
        shutil.copy(people / name, tmp_path / Path(name).name)
    path = tmp_path / "list.csv"
    path.write_text(
        "Ann_0001.png,Ann_0003.png,same\nAnn_0001.png,Bea_0001.png,different\n"
        "wall.png,Ann_0001.png,different\nwall.png,text.jpg,same\n"
    )
    report = evaluate("verification", "--pairs", path)
    assert report["pairs"] == {"source": "list.csv", "genuine": 1, "impostor": 1, "left_out": 2}
    reasons = {entry["picture"]: entry["reason"] for entry in report["failures"]}
    assert set(reasons) == {"wall.png", "text.jpg"}
    assert "No face was found" in reasons["wall.png"]
    assert report["accuracy"] is None

    flags = ["--model-repository", str(repository)]
    assert main(["evaluate", "verification", "--pairs", str(path), *flags]) == 0
    table = capsys.readouterr().out
    assert "1 of one person and 1 of two, list.csv; 2 left out" in table
    assert "0.001   insufficient data: 3,000 pairs of two people needed" in table
    assert "2 pictures failed\n  wall.png: No face was found" in table

    path.write_text("wall.png,Ann_0001.png,different\nAnn_0001.png,Ann_0003.png,same\n")
    assert main(["evaluate", "verification", "--pairs", str(path), *flags]) == 1
    assert "leaves 1 pairs of one person and 0 of two" in capsys.readouterr().err


def test_a_bin_that_calls_something_is_refused_and_nothing_runs(
    repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    path = tmp_path / "faces.bin"
    path.write_bytes(pickle.dumps(([b"", Evil()], [True])))
    flags = ["--pairs", str(path), "--model-repository", str(repository)]
    assert main(["evaluate", "verification", *flags]) == 1
    assert "faces.bin is refused: it names" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--embedder", "none"], "none"),
        (
            ["--embedder", "retinaface"],
            "'retinaface' is a detector, where an embedding model is needed: none is loaded",
        ),
        (["--embedder", "sface:7"], "7"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    repository: Path,
    csv_pairs: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    problem: str,
) -> None:
    paths = ["--pairs", str(csv_pairs), "--model-repository", str(repository)]
    assert main(["evaluate", "verification", *paths, *flags]) == 1
    assert problem in capsys.readouterr().err


@pytest.fixture(scope="module")
def wider(repository: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos labelled with the faces found in them; the first has one more, which nobody can find."""
    root = tmp_path_factory.mktemp("wider")
    (root / "images" / "0--People").mkdir(parents=True)
    photos = {
        name: (people / name / f"{name}_0001.png").read_bytes() for name in ("Ann", "Bea", "Cid")
    }
    found = asyncio.run(_detect(repository, list(photos.values()), LARGEST))
    lines = []
    for (name, photo), faces in zip(photos.items(), found, strict=True):
        file = f"0--People/{name}.jpg"
        (root / "images" / file).write_bytes(photo)
        box = faces.faces[0].box
        assert box is not None
        x, y, right, bottom = box.round().astype(int)
        labels = [f"{x} {y} {right - x} {bottom - y} 0 0 0 0 0 0"]
        if name == "Ann":
            labels.append("2 2 15 20 0 0 0 0 0 0")
        lines += [file, str(len(labels)), *labels]
    (root / "labels.txt").write_text("\n".join(lines))
    return root


def test_the_average_precision_is_the_one_known_by_hand(evaluate: Evaluate, wider: Path) -> None:
    report = evaluate("detection", "--labels", wider / "labels.txt", "--images", wider / "images")
    # The face that nobody finds is 20 pixels tall: 3 of 4 hard faces, each before any false box.
    assert report["average_precision"] == pytest.approx({"easy": 1, "medium": 1, "hard": 0.75})
    assert report["faces"] == {"easy": 3, "medium": 3, "hard": 4}
    assert not report["official_subsets"]
    assert (report["photos"], report["failures"]) == (3, [])


def test_faces_outside_of_a_subset_are_neither_hit_nor_miss(
    evaluate: Evaluate, wider: Path
) -> None:
    subsets = wider / "subsets.json"
    subsets.write_text(
        json.dumps(
            {
                "easy": {"0--People/Bea.jpg": [0]},
                "medium": {"0--People/Ann.jpg": [1]},
                "hard": {},
            }
        )
    )
    paths = ("--labels", wider / "labels.txt", "--images", wider / "images", "--subsets", subsets)
    report = evaluate("detection", *paths)
    assert report["average_precision"] == {"easy": pytest.approx(1), "medium": 0, "hard": None}
    assert report["faces"] == {"easy": 1, "medium": 1, "hard": 0}


def test_a_photo_that_cannot_be_read_counts_as_missed(
    evaluate: Evaluate,
    wider: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    shutil.copytree(wider, tmp_path / "wider")
    (tmp_path / "wider" / "images" / "0--People" / "Bea.jpg").write_bytes(b"no picture")
    paths = [
        "--labels",
        str(tmp_path / "wider" / "labels.txt"),
        "--images",
        str(tmp_path / "wider" / "images"),
    ]
    report = evaluate("detection", *paths)
    assert report["average_precision"]["easy"] == pytest.approx(2 / 3)
    assert [entry["picture"] for entry in report["failures"]] == ["0--People/Bea.jpg"]
    assert main(["evaluate", "detection", *paths, "--model-repository", str(repository)]) == 0
    assert "NOT the official subsets" in capsys.readouterr().out


@pytest.mark.long
def test_identification_tells_what_six_portraits_can_say(
    evaluate: Evaluate, people: Path, tmp_path: Path
) -> None:
    found = evaluate("identification", people, "--det", tmp_path / "det.png", "--fpir", "0.2")
    assert (found["persons"], found["failures"]) == (4, [])
    # Ann and Bea have four pictures each, Cid and Dan two: a portrait and its mirror image.
    assert found["searches"] == {"mated": 8, "strangers": 8}
    assert found["ranks"] == {"1": None, "5": None}
    assert [each["needed"] for each in found["fnir_at_fpir"]] == [
        "30 persons",
        "300 persons",
        "3,000 persons",
    ]
    assert all(each["insufficient_data"] for each in found["thresholds_by_size"])
    with Image.open(tmp_path / "det.png") as picture:
        assert picture.size == (880, 620)


@pytest.mark.long
def test_identification_report_is_readable(
    repository: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--enrol", "2", "--model-repository", str(repository)]
    assert main(["evaluate", "identification", str(people), *flags]) == 0
    told = capsys.readouterr().out
    assert "4 persons by up to 2 photos each" in told
    assert "insufficient data: 30 searches for enrolled persons needed" in told
    assert "thresholds by size, for a FPIR of 0.01" in told
