"""Vectors are checked where they come from a caller, and compared."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mien_server.errors import InvalidRequest, Reason, Unmet, at
from mien_server.models.roles import EmbedderOptions
from mien_server.pipeline.types import (
    ArrayF32,
    Comparison,
    Embedding,
    ImageSource,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
)
from mien_server.repository.versions import ReadyModel

UNIT_TOLERANCE = 1e-3
"""How far from 1 the L2 norm of a caller's vector may be: what float32 and text formats lose."""


def cosine(a: ArrayF32, b: ArrayF32) -> float:
    """The cosine similarity of two unit vectors [d], in [-1, 1]."""
    return float(np.clip(np.dot(a.astype(np.float64), b.astype(np.float64)), -1.0, 1.0))


def check_embedding(given: Embedding) -> Embedding:
    """A caller's embedding, checked and brought to unit length exactly.

    A vector whose norm is within `UNIT_TOLERANCE` of 1 is accepted and divided by it; any other is refused,
    because it is more often a mix-up (a raw vector, another field) than a unit vector gone astray.

    Raises:
        InvalidRequest: INVALID_EMBEDDING for no values, NaN or infinite ones, a zero vector, another length
            than 1, a norm before scaling that no vector can have had, or no model.
    """
    values = given.values
    if not (math.isfinite(given.norm) and given.norm >= 0):  # 0: the caller has not kept it
        raise _invalid(f"had the norm {given.norm:g}, which no vector has", field="norm")
    if not given.model.name or not given.model.fingerprint:
        raise _invalid(
            "names no model: send it with the model's name and fingerprint, as it was answered",
            field="model",
        )
    if values.ndim != 1 or not values.size:
        raise _invalid("has no values")
    if not np.isfinite(values).all():
        raise _invalid("has values that are NaN or infinite")
    vector = values.astype(np.float64)
    norm = float(np.linalg.norm(vector))
    if norm == 0.0:
        raise _invalid("is a zero vector")
    if abs(norm - 1.0) > UNIT_TOLERANCE:
        raise _invalid(
            f"has the L2 norm {norm:.6g} instead of 1: send the values as they were answered"
        )
    return replace(given, values=(vector / norm).astype(np.float32))


def check_same_model(given: Embedding, other: ModelIdentity) -> None:
    """Refuses to compare across models.

    Args:
        given: a caller's embedding.
        other: the model of what it is to be compared with.

    Raises:
        Unmet: EMBEDDING_MISMATCH, the fingerprints differ.
    """
    if given.model.fingerprint != other.fingerprint:
        raise Unmet(
            Reason.EMBEDDING_MISMATCH,
            f"The embedding was made by {_describe(given.model)} and cannot be compared with one by"
            f" {_describe(other)}: embed its photo again.",
            field="model",
        )


def check_length(given: Embedding, length: int) -> None:
    """Refuses a caller's embedding whose length is not that of its model's vectors.

    Raises:
        InvalidRequest: INVALID_EMBEDDING.
    """
    if given.values.size != length:
        raise _invalid(f"has {given.values.size} values where {given.model.name} gives {length}")


def _describe(model: ModelIdentity) -> str:
    return f"{model.name} version {model.version} ({model.fingerprint})"


def _invalid(what: str, *, field: str = "values") -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_EMBEDDING, f"The embedding {what}.", field=field)


def embedder_for(asked: ModelRef, given: Mapping[str, Embedding]) -> tuple[ModelRef, str]:
    """The embedder of a comparison, and where the request names it."""
    if asked.name or asked.version or not given:
        return asked, "embedder"
    side, embedding = next(iter(given.items()))
    return ModelRef(embedding.model.name, embedding.model.version), f"{side}.embedding.model"


def match_threshold(model: ReadyModel) -> float:
    """From which cosine on an embedder says that two faces are one person's.

    Raises:
        InvalidRequest: its configuration does not say.
    """
    options: EmbedderOptions = model.config.options
    if options.match_threshold is None:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"threshold: {model.name} has no match_threshold of its own: give one.",
            field="threshold",
        )
    return options.match_threshold


def check_threshold(threshold: float | None, field: str = "threshold") -> None:
    """Refuses what no cosine can be; None is nothing.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"{field}: {threshold:g} is outside [-1, 1], where cosines lie.",
            field=field,
        )


def checked_sides(
    a: ImageSource | Embedding, b: ImageSource | Embedding
) -> tuple[dict[str, ImageSource | Embedding], dict[str, Embedding]]:
    """Both sides of a comparison by their names, the embeddings checked; and those that are embeddings.

    Raises:
        InvalidRequest: as `check_embedding` says, at `a.embedding` or `b.embedding`.
    """
    sides = {"a": a, "b": b}
    given: dict[str, Embedding] = {}
    for name, source in sides.items():
        if isinstance(source, Embedding):
            with at(name), at("embedding"):
                sides[name] = given[name] = check_embedding(source)
    return sides, given


def compared(
    a: PhotoFaces,
    b: PhotoFaces,
    threshold: float,
    *,
    from_request: bool,
    detector: ModelIdentity | None,
    embedder: ModelIdentity,
) -> Comparison:
    """The answer about two faces, the first of each side, which have embeddings.

    Args:
        threshold: the cosine from which on they are one person's.
        from_request: whether the caller gave it.
    """
    similarity = cosine(_vector(a), _vector(b))
    return Comparison(
        similarity=similarity,
        threshold=threshold,
        threshold_from_request=from_request,
        matched=similarity >= threshold,
        face_a=a.faces[0],
        face_b=b.faces[0],
        detector=detector,
        embedder=embedder,
        size_a=_size(a),
        size_b=_size(b),
    )


def _vector(found: PhotoFaces) -> ArrayF32:
    embedding = found.faces[0].embedding
    assert embedding is not None  # noqa: S101 - every side was embedded or given
    return embedding.values


def _size(found: PhotoFaces) -> tuple[int, int] | None:
    return (found.width, found.height) if found.faces[0].box is not None else None
