"""Faces without a person, put together by likeness: average linkage over cosines, with SciPy.

Only faces that are somehow linked by pairs at the threshold can end in one group, so these parts are found
first, by products a strip at a time, and SciPy's linkage, whose memory grows with the square, sees one part
at a time. That changes no group: two groups join only while their pairs reach the threshold on average, and
then one pair at least does.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason
from mien_server.gallery.types import FaceGroup
from mien_server.pipeline.types import ArrayF32

MAX_FACES = 20_000
"""Faces that one call looks at: their product is some 4 seconds of a core at 512 numbers each."""

MAX_LINKED = 5_000
"""Faces of one part: their linkage takes some 450 MB and 4 seconds for a while."""

_ROUNDING = 1e-4
"""More than a product in float32 can be wrong by."""

_STRIP_ROWS = 256
_DIGITS = 9
"""Of a cosine: sums in another order, as another machine has them, change no group."""


def available() -> bool:
    """Whether SciPy is installed."""
    return find_spec("scipy") is not None


def group(
    faces: NDArray[np.int64],
    vectors: ArrayF32,
    *,
    threshold: float,
    least: int,
    check: Callable[[], None],
) -> list[FaceGroup]:
    """The groups of some faces, the largest first; of equals the one enrolled first.

    The same faces give the same groups, in whatever order they come.

    Args:
        faces: [n] keys, each once; at most `MAX_FACES`.
        vectors: [n, d] of unit length.
        threshold: the mean cosine of their pairs down to which two groups are joined, in [-1, 1].
        least: faces that a group must have, at least 1.
        check: called again and again; what it raises ends the work.

    Raises:
        InvalidRequest: INVALID_OPTION, the threshold is so low that too many faces hang together.
    """
    order = np.argsort(faces)
    faces, vectors = faces[order], vectors[order]
    parts = _linked(vectors, threshold - _ROUNDING, check)
    groups = []
    by_part = np.argsort(parts, kind="stable")
    for members in np.split(by_part, np.flatnonzero(np.diff(parts[by_part])) + 1):
        check()
        if len(members) >= least:
            groups += _groups(faces[members], vectors[members], threshold, least)
    return sorted(groups, key=lambda each: (-len(each.faces), each.faces[0]))


def _linked(vectors: ArrayF32, threshold: float, check: Callable[[], None]) -> NDArray[np.intp]:
    """Numbers of the parts that faces are linked to by pairs at or above a threshold: [n]."""
    sparse: Any = import_module("scipy.sparse")
    graphs: Any = import_module("scipy.sparse.csgraph")
    count = len(vectors)
    parts: NDArray[np.intp] = np.arange(count)
    for start in range(0, count, _STRIP_ROWS):
        check()
        strip = slice(start, start + _STRIP_ROWS)
        # Pairs with what came before have been seen.
        near, far = np.nonzero(vectors[strip] @ vectors[start:].T >= threshold)
        left, right = parts[start + near], parts[start + far]
        other = left != right
        if other.any():
            edges = np.unique(np.stack([left[other], right[other]]), axis=1)
            shape = (count, count)
            graph = sparse.coo_array((np.ones(edges.shape[1], np.int8), edges), shape)
            _, joined = graphs.connected_components(graph, directed=False)
            parts = joined[parts].astype(np.intp)
    return parts


def _groups(
    faces: NDArray[np.int64], vectors: ArrayF32, threshold: float, least: int
) -> list[FaceGroup]:
    """The groups of one part."""
    if len(faces) > MAX_LINKED:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"threshold {threshold:g} is too low for these faces: {len(faces):,} of them hang together by"
            f" pairs that reach it, more than {MAX_LINKED:,}. Choose a higher one.",
            field="threshold",
        )
    if len(faces) == 1:
        return [FaceGroup(faces.tolist(), 1.0)]
    linkage: Any = import_module("scipy.cluster.hierarchy")
    exact = vectors.astype(np.float64)
    tree = linkage.linkage(_distances(exact), "average")
    numbers = linkage.fcluster(tree, 1.0 - threshold + 10.0**-_DIGITS, "distance")
    groups = []
    for number in np.unique(numbers):
        members = np.flatnonzero(numbers == number)
        if len(members) >= least:
            groups.append(FaceGroup(faces[members].tolist(), _similarity(exact[members])))
    return groups


def _distances(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - cosine of each pair of unit vectors [n, d], as SciPy wants them: [n (n - 1) / 2]."""
    condensed: Any = import_module("scipy.spatial.distance").squareform
    distances = vectors @ vectors.T
    np.subtract(1.0, distances, out=distances)
    np.round(distances, _DIGITS, out=distances)
    np.clip(distances, 0.0, 2.0, out=distances)
    result: NDArray[np.float64] = condensed(distances, checks=False)
    return result


def _similarity(vectors: NDArray[np.float64]) -> float:
    """The mean cosine of the pairs of unit vectors [n, d]; 1 for a single one."""
    count = len(vectors)
    if count == 1:
        return 1.0
    total = vectors.sum(axis=0)
    return float(np.clip((total @ total - count) / (count * (count - 1)), -1.0, 1.0))
