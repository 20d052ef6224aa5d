"""How well a detector and an embedder tell people apart, on labelled pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mien_server.evaluation.loaded import EvaluationError, LoadedModels, run_all
from mien_server.evaluation.metrics import (
    FARS,
    Accuracy,
    Operation,
    Rates,
    Roc,
    accuracy_by_folds,
    best_threshold,
    operation,
    rates_at,
    roc,
)
from mien_server.evaluation.pairs import Pairs, Picture
from mien_server.models.roles import DETECTOR, EMBEDDER, EmbedderOptions
from mien_server.pipeline.compare import cosine
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ModelRef,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture without an answer, and why."""

    picture: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What an evaluation found.

    Attributes:
        genuine, impostor: how many pairs of one and of two people were compared.
        left_out: how many pairs were not, since one of their pictures failed.
        failures: the pictures that did.
        accuracy: by cross-validation, or None for insufficient data.
        operations: one for each false accept rate of `FARS`.
        best: what the threshold with the most pairs right does.
        configured: what the model's match_threshold does, or None if it has none.
        roc: the curve of the pairs that were compared.
        similarity: the cosine of each pair that was compared, [k].
        same: whether that pair is of one person, [k].
    """

    genuine: int
    impostor: int
    left_out: int
    failures: Sequence[Failure]
    accuracy: Accuracy | None
    operations: Sequence[Operation]
    best: Rates
    configured: Rates | None
    roc: Roc
    similarity: NDArray[np.float64]
    same: NDArray[np.bool_]


def verify_pairs(loaded: LoadedModels, pairs: Pairs, *, aligned: bool) -> Verification:
    """Embeds every picture once and compares the pairs as Verify would: the largest face of each.

    Args:
        loaded: must have an embedder, and a detector unless the pictures are crops.
        aligned: whether the pictures are crops of 112x112 pixels that need no detection.

    Raises:
        EvaluationError: after leaving out pictures that fail, one of the two kinds of pairs is missing.
    """
    vectors, failures = embed_pictures(loaded, pairs.pictures, aligned=aligned)
    similarity = np.array(
        [
            np.nan if (a := vectors[i]) is None or (b := vectors[j]) is None else cosine(a, b)
            for i, j in zip(pairs.left, pairs.right, strict=True)
        ]
    )
    known = ~np.isnan(similarity)
    scores, same = similarity[known], pairs.same[known]
    if len(np.unique(same)) < 2:
        first = f"; {failures[0].picture}: {failures[0].reason}" if failures else ""
        raise EvaluationError(
            f"{pairs.source} leaves {same.sum()} pairs of one person and {(~same).sum()} of two: both"
            f" kinds are needed ({len(failures)} pictures failed{first})"
        )
    options: EmbedderOptions = loaded.models[EMBEDDER].config.options
    threshold = options.match_threshold
    return Verification(
        genuine=int(same.sum()),
        impostor=int((~same).sum()),
        left_out=int((~known).sum()),
        failures=failures,
        accuracy=accuracy_by_folds(scores, same, pairs.folds[known]),
        operations=[operation(scores, same, far) for far in FARS],
        best=rates_at(scores, same, best_threshold(scores, same)),
        configured=None if threshold is None else rates_at(scores, same, threshold),
        roc=roc(scores, same),
        similarity=scores,
        same=same,
    )


def embed_pictures(
    loaded: LoadedModels, pictures: Sequence[Picture], *, aligned: bool
) -> tuple[list[NDArray[np.float32] | None], list[Failure]]:
    """The embedding of each picture's largest face, [d] of unit length; None where there is none, and why."""
    # The defaults of the pipeline are the models of the evaluation; a version is named.
    refs = {role: ModelRef(model.name, model.version) for role, model in loaded.models.items()}
    selection = FaceSelection(FacePolicy.LARGEST)

    async def embed(picture: Picture) -> NDArray[np.float32]:
        image = EncodedImage(picture.read())
        found = await loaded.pipeline.embed(
            AlignedFace(image) if aligned else image,
            detector=refs.get(DETECTOR, ModelRef()),
            embedder=refs[EMBEDDER],
            selection=selection,
            call=Call(),
        )
        embedding = found.faces[0].embedding
        assert embedding is not None  # noqa: S101 - that is what was asked for
        return embedding.values

    vectors: list[NDArray[np.float32] | None] = []
    failures = []
    for picture, result in zip(pictures, run_all(pictures, embed, label="embedding"), strict=True):
        if isinstance(result, Exception):
            failures.append(Failure(picture.name, str(result)))
            vectors.append(None)
        else:
            vectors.append(result)
    return vectors, failures
