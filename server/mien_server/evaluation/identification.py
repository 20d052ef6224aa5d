"""How well a detector and an embedder find persons in a gallery, on a folder of persons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mien_server.evaluation.loaded import EvaluationError, LoadedModels
from mien_server.evaluation.open_set import (
    FPIRS,
    SIZES,
    Det,
    GalleryPoint,
    Searches,
    Share,
    det,
    point,
    rank_share,
)
from mien_server.evaluation.persons import Persons
from mien_server.evaluation.verification import Failure, embed_pictures
from mien_server.pipeline.types import ArrayF32

RANKS = (1, 5)

_MOST_SIMILARITIES = 500_000_000
"""That are in memory at once: 2 GB."""


@dataclass(frozen=True, slots=True)
class OpenSetResult:
    """What an evaluation found.

    Attributes:
        persons: how many are enrolled.
        enrolled: photos of each of them that are, at most.
        mated: searches for persons who are enrolled.
        strangers: searches for persons who are not: each probe's in the gallery without its own person.
        failures: the pictures without an answer.
        ranks: by rank, the share of mated searches that have the person so far up; None: too few of them.
        points: at every FPIR of `FPIRS`, in the gallery of all persons.
        sizes: at one FPIR, in galleries of the sizes of `SIZES`.
        det: FNIR over FPIR in the gallery of all persons; None without mated searches.
    """

    persons: int
    enrolled: int
    mated: int
    strangers: int
    failures: Sequence[Failure]
    ranks: dict[int, Share | None]
    points: Sequence[GalleryPoint]
    sizes: Sequence[GalleryPoint]
    det: Det | None


def identify_persons(
    loaded: LoadedModels, data: Persons, *, aligned: bool, enrolled: int, fpir: float
) -> OpenSetResult:
    """Enrols the first photos of every person, and looks for the persons of the others.

    Args:
        loaded: must have an embedder, and a detector unless the pictures are crops.
        data: the photos.
        aligned: whether they are crops of 112x112 pixels that need no detection.
        enrolled: photos of each person to enrol, at least 1; further ones are looked for.
        fpir: the rate for which thresholds by size are told, in (0, 1).

    Raises:
        EvaluationError: after leaving out pictures that fail there are fewer than two persons, or there are
            too many for the memory.
    """
    flat = [picture for pictures in data.pictures for picture in pictures]
    vectors, failures = embed_pictures(loaded, flat, aligned=aligned)
    rest = iter(vectors)
    by_person = [[v for v in (next(rest) for _ in each) if v is not None] for each in data.pictures]
    searches = search(by_person, enrolled)
    size = searches.others.shape[1]
    return OpenSetResult(
        persons=size + 1,
        enrolled=enrolled,
        mated=len(searches.mated),
        strangers=len(searches.persons),
        failures=failures,
        ranks={rank: rank_share(searches, rank) for rank in RANKS},
        points=[point(searches, size, each) for each in FPIRS],
        sizes=[point(searches, each, fpir) for each in SIZES],
        det=det(searches),
    )


def search(by_person: Sequence[Sequence[ArrayF32]], enrolled: int) -> Searches:
    """Looks for every photo that is not enrolled, and of persons without such a photo for the last one.

    Args:
        by_person: the embeddings of each person, [d] of unit length. Persons without any are left out.
        enrolled: how many of each are enrolled.

    Raises:
        EvaluationError: fewer than two persons are left, or they are too many for the memory.
    """
    known = [each for each in by_person if each]
    if len(known) < 2:
        raise EvaluationError(f"{len(known)} persons have a photo with a face: two are needed")
    probes: list[ArrayF32] = []
    persons: list[int] = []
    mated: list[int] = []
    for number, vectors in enumerate(known):
        others = vectors[enrolled:]
        if others:
            mated += range(len(probes), len(probes) + len(others))
        probes += others or vectors[-1:]
        persons += [number] * max(1, len(others))
    if len(probes) * len(known) > _MOST_SIMILARITIES:
        raise EvaluationError(
            f"{len(probes):,} photos to look for among {len(known):,} persons are too many at once: take a"
            " part of the folder"
        )
    looked_for = np.stack(probes)
    scores = np.empty((len(probes), len(known)), np.float32)
    for number, vectors in enumerate(known):
        # A person is as similar as the most similar photo, as in Identify.
        scores[:, number] = (looked_for @ np.stack(vectors[:enrolled]).T).max(axis=1)
    whose = np.array(persons, np.intp)
    own = np.zeros(scores.shape, bool)
    own[np.arange(len(probes)), whose] = True
    of_mated = np.array(mated, np.intp)
    others_of = scores[~own].reshape(len(probes), len(known) - 1)
    return Searches(others_of, of_mated, scores[of_mated, whose[of_mated]], whose)
