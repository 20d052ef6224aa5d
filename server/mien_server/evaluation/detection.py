"""How well a detector finds the faces of WIDER FACE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mien_server.evaluation.loaded import MOST_FACES, EvaluationError, LoadedModels, run_all
from mien_server.evaluation.precision_recall import Boxes, Scores, average_precision, match
from mien_server.evaluation.verification import Failure
from mien_server.evaluation.wider import SUBSETS, LabelledPhoto, Subset, WiderFace
from mien_server.models.roles import DETECTOR
from mien_server.pipeline.selection import MIN_SCORE_FLOOR
from mien_server.pipeline.types import Call, EncodedImage, FacePolicy, FaceSelection, ModelRef


@dataclass(frozen=True, slots=True)
class SubsetResult:
    """What was found of one subset.

    Attributes:
        average_precision: in [0, 1], or None if the subset has no faces.
        faces: how many count.
    """

    average_precision: float | None
    faces: int


@dataclass(frozen=True, slots=True)
class Detection:
    """What an evaluation found.

    Attributes:
        photos: how many were looked at.
        failures: the photos that could not be. Their faces count as missed.
    """

    subsets: Mapping[Subset, SubsetResult]
    photos: int
    failures: Sequence[Failure]


def detect_faces(loaded: LoadedModels, data: WiderFace) -> Detection:
    """Has a detector find the faces of every photo, as Detect would for all of them, down to low scores.

    Args:
        loaded: must have a detector.

    Raises:
        EvaluationError: every photo failed.
    """
    model = loaded.models[DETECTOR]
    selection = FaceSelection(FacePolicy.ALL, MIN_SCORE_FLOOR, 0.0, MOST_FACES)

    async def find(photo: LabelledPhoto) -> tuple[Boxes, Scores]:
        found = await loaded.pipeline.detect(
            EncodedImage(photo.path.read_bytes()),
            detector=ModelRef(model.name, model.version),
            selection=selection,
            call=Call(),
        )
        boxes = [face.box for face in found.faces]
        scores = [face.score for face in found.faces]
        return np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64)

    results = run_all(data.photos, find, label="detecting")
    boxes: list[tuple[Boxes, Scores]] = []
    failures = []
    for photo, result in zip(data.photos, results, strict=True):
        if isinstance(result, Exception):
            failures.append(Failure(photo.name, str(result)))
            boxes.append((np.empty((0, 4)), np.empty(0)))
        else:
            boxes.append(result)
    if len(failures) == len(results):
        raise EvaluationError(f"every photo failed; {failures[0].picture}: {failures[0].reason}")
    boxes = _normalised(boxes)
    subsets = {name: _subset(name, data.photos, boxes) for name in SUBSETS}
    return Detection(subsets, len(results), failures)


def _subset(
    name: Subset, photos: Sequence[LabelledPhoto], boxes: Sequence[tuple[Boxes, Scores]]
) -> SubsetResult:
    faces = sum(int(photo.subsets[name].sum()) for photo in photos)
    if not faces:
        return SubsetResult(None, 0)
    outcomes = (
        match(found, scores, _corners(photo.boxes), photo.subsets[name])
        for photo, (found, scores) in zip(photos, boxes, strict=True)
        # So do the official tools: a box in a photo without labels is no false one.
        if len(photo.boxes) and len(found)
    )
    return SubsetResult(average_precision(outcomes, faces), faces)


def _corners(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _normalised(boxes: Sequence[tuple[Boxes, Scores]]) -> list[tuple[Boxes, Scores]]:
    """Spreads the scores over [0, 1], from the lowest of the data set to the highest."""
    scores = np.concatenate([part for _, part in boxes])
    if not len(scores):
        return list(boxes)
    low, spread = scores.min(), np.ptp(scores)
    return [
        (found, (part - low) / spread if spread else np.ones_like(part)) for found, part in boxes
    ]
