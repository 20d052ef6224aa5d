"""What similarities of labelled pairs say: accuracy, and the share accepted of either kind.

A pair is accepted when its similarity reaches the threshold, as in Verify. TAR is the share of the pairs
of one person that are accepted, FAR that of the pairs of two.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""The false accept rates of a report."""

_PAIRS_PER_ACCEPT = 3.0
"""The rule of three (Hanley and Lippman-Hand, JAMA 249, 1983): if none of n pairs is accepted, the rate is
below 3/n with 95 % confidence. So fewer than 3/FAR impostor pairs cannot tell that a FAR holds."""

PAIRS_TO_BE_BEST = 300
"""The pairs of either kind from which `best_threshold` may stand for more than the pairs themselves: by the
same rule, with fewer, even a threshold that gets all of them right may err on more than 1 % of a kind."""

Similarities = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy by cross-validation.

    Attributes:
        mean, std: over the folds, in [0, 1]. The standard deviation is the population's.
        folds: how many there were.
        thresholds: what each fold was judged by, the threshold that is best for the others.
    """

    mean: float
    std: float
    folds: int
    thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a threshold that keeps a false accept rate gives.

    Attributes:
        far: the rate to keep.
        needed: how many impostor pairs there must be for anything to be said of it.
        threshold: the lowest that keeps the rate, or None for insufficient data.
        tar: the share of the genuine pairs that it accepts, in [0, 1], or None.
    """

    far: float
    needed: int
    threshold: float | None = None
    tar: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """FAR and TAR at every threshold, [k] each, by falling threshold, so that both rise from 0 to 1."""

    far: Similarities
    tar: Similarities


def lowest_far(impostors: int) -> float:
    """The lowest false accept rate that so many impostor pairs can speak of."""
    return _PAIRS_PER_ACCEPT / impostors


def best_threshold(similarity: Similarities, same: Labels) -> float:
    """The threshold with the most pairs right, both kinds alike.

    Between neighbouring similarities all thresholds are equal: it is the middle of the widest gap among the
    best. Beyond the outermost pairs it is the similarity of one of them.
    """
    values, index = np.unique(similarity, return_inverse=True)
    genuine = np.bincount(index, weights=same, minlength=len(values))
    impostor = np.bincount(index, weights=~same, minlength=len(values))
    # At threshold i everything from values[i] on is accepted; at the last one nothing is.
    rejected = np.concatenate([[0.0], np.cumsum(impostor)])
    accepted = np.concatenate([np.cumsum(genuine[::-1])[::-1], [0.0]])
    right = rejected + accepted
    edges = np.concatenate([values[:1], values, [np.nextafter(values[-1], np.inf)]])
    (best,) = np.nonzero(right == right.max())
    widest = best[np.argmax(edges[best + 1] - edges[best])]
    if widest == len(values):
        return float(edges[-1])
    below, at = edges[widest], edges[widest + 1]
    middle = (below + at) / 2
    return float(middle if middle > below else at)


def accuracy_by_folds(
    similarity: Similarities, same: Labels, folds: NDArray[np.intp]
) -> Accuracy | None:
    """LFW's protocol: each fold is judged by the threshold that is best for the others.

    Returns:
        None for insufficient data: without some fold, one of the two kinds of pairs is missing.
    """
    present = np.unique(folds)
    scores, thresholds = [], []
    for fold in present:
        judged = folds == fold
        if len(np.unique(same[~judged])) < 2:
            return None
        threshold = best_threshold(similarity[~judged], same[~judged])
        scores.append(np.mean((similarity[judged] >= threshold) == same[judged]))
        thresholds.append(threshold)
    if not scores:
        return None
    return Accuracy(float(np.mean(scores)), float(np.std(scores)), len(present), tuple(thresholds))


def operation(similarity: Similarities, same: Labels, far: float) -> Operation:
    """The lowest threshold that accepts at most `far`, in (0, 1), of the impostor pairs, and its TAR."""
    impostors = np.sort(similarity[~same])[::-1]
    genuine = similarity[same]
    needed = int(np.ceil(_PAIRS_PER_ACCEPT / far - 1e-9))
    if len(impostors) < needed or not len(genuine):
        return Operation(far, needed)
    allowed = int(far * len(impostors) + 1e-9)
    threshold = float(np.nextafter(impostors[allowed], np.inf))
    return Operation(far, needed, threshold, float(np.mean(genuine >= threshold)))


def roc(similarity: Similarities, same: Labels) -> Roc:
    """The receiver operating characteristic. Both kinds must be there."""
    order = np.argsort(-similarity, kind="stable")
    sorted_same = same[order]
    last = np.append(np.diff(similarity[order]) != 0, True)  # equal ones are accepted together
    tar = np.cumsum(sorted_same)[last] / same.sum()
    far = np.cumsum(~sorted_same)[last] / (~same).sum()
    return Roc(np.concatenate([[0.0], far]), np.concatenate([[0.0], tar]))


@dataclass(frozen=True, slots=True)
class Rates:
    """What a threshold does; the rates are in [0, 1]."""

    threshold: float
    accuracy: float
    far: float
    tar: float


def rates_at(similarity: Similarities, same: Labels, threshold: float) -> Rates:
    """Accuracy, FAR and TAR of a given threshold. Both kinds must be there."""
    accepted = similarity >= threshold
    return Rates(
        threshold=threshold,
        accuracy=float(np.mean(accepted == same)),
        far=float(accepted[~same].mean()),
        tar=float(accepted[same].mean()),
    )
