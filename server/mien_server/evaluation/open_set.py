"""What similarities to a gallery say of searches in it: who is found, missed, or taken for another.

A gallery of `size` persons is any such part of the persons that there are, and a rate is the mean over all
parts: the chance that none of the `k` persons who reach a threshold is among them is hypergeometric. So a
small gallery is judged by all of the data, without drawing lots. A gallery that is larger than the data is
judged by the share f of all pairs of strangers that reach the threshold, as if pairs were independent: a
stranger is then taken for nobody with the chance (1 - f)^size. Since some persons are like many and most like
few, it is rather less often.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FPIRS = (1e-1, 1e-2, 1e-3)
"""The false positive identification rates of a report."""

SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
"""The sizes of galleries of a report, in persons."""

MATED_NEEDED = 30
"""Searches for persons who are enrolled, from which a share of them is told: by the rule of three, with
fewer even no miss at all may stand for one in ten."""

_STEP = 1e-4
"""Between thresholds that are tried."""

_Z95 = 1.959964

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Searches:
    """What every probe's search found, in the gallery of all persons.

    Attributes:
        others: [probes, M] float32, the similarity to each person who is not the probe's own.
        mated: [m], which probes are of persons who are enrolled with another photo.
        mate: [m], the similarity to that person.
        persons: [probes], whose a probe is, by number.
    """

    others: NDArray[np.float32]
    mated: NDArray[np.intp]
    mate: NDArray[np.float32]
    persons: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Share:
    """A share of searches, in [0, 1], and where it lies with 95 % confidence (Wilson's interval)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GalleryPoint:
    """What the lowest threshold that keeps a FPIR gives in a gallery of a size.

    Attributes:
        size: persons of the gallery.
        fpir: the share to keep of searches for strangers that find somebody.
        threshold: rounded up to four digits, or None for insufficient data.
        fnir: the share of searches for enrolled persons that do not find them as the best match at or above
            the threshold, in [0, 1]; None for insufficient data.
        extrapolated: whether the gallery is larger than the data.
        needed: what is missing, where data are: "3,000 persons".
    """

    size: int
    fpir: float
    threshold: float | None = None
    fnir: float | None = None
    extrapolated: bool = False
    needed: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Det:
    """FNIR over FPIR at many thresholds, [k] each, by falling threshold, in the gallery of all persons."""

    fpir: Floats
    fnir: Floats


def rank_share(searches: Searches, rank: int) -> Share | None:
    """The share of searches for enrolled persons that have them among the best `rank`; None: too few."""
    count = len(searches.mated)
    if count < MATED_NEEDED:
        return None
    better = (searches.others[searches.mated] >= searches.mate[:, None]).sum(axis=1)
    return _wilson(int((better < rank).sum()), count)


def point(searches: Searches, size: int, fpir: float) -> GalleryPoint:
    """What is to be said of a gallery of so many persons at a FPIR."""
    strangers = len(np.unique(searches.persons))
    others = searches.others.shape[1]
    if strangers < (needed := math.ceil(3 / fpir - 1e-9)):
        # The photos of one person are no independent searches, so persons count.
        return GalleryPoint(size, fpir, needed=f"{needed:,} persons")
    extrapolated = size > others
    if extrapolated:
        pairs = strangers * (strangers - 1) // 2
        needed = math.ceil(3 * size / fpir - 1e-9)
        if pairs < needed:
            told = f"{math.ceil((1 + math.sqrt(1 + 8 * needed)) / 2):,} persons"
            return GalleryPoint(size, fpir, extrapolated=True, needed=told)
    threshold = _lowest(searches, size, fpir)
    fnir = None
    if len(searches.mated) >= MATED_NEEDED:
        fnir = _fnir(searches, size, threshold)
    return GalleryPoint(size, fpir, threshold, fnir, extrapolated)


def det(searches: Searches, count: int = 200) -> Det | None:
    """FNIR over FPIR in the gallery of all persons, or None if nobody is looked for who is enrolled."""
    if not len(searches.mated):
        return None
    best = searches.others.max(axis=1)
    edges = np.concatenate([best, searches.mate])
    tried = np.unique(np.quantile(edges, np.linspace(0, 1, count)))[::-1]
    size = searches.others.shape[1]
    fpir = np.array([float((best >= t).mean()) for t in tried])
    fnir = np.array([_fnir(searches, size, float(t)) for t in tried])
    return Det(np.concatenate([[0.0], fpir]), np.concatenate([[1.0], fnir]))


def _lowest(searches: Searches, size: int, fpir: float) -> float:
    """The lowest threshold, of four digits, at which a gallery of a size keeps a FPIR."""
    low, high = -10_000, 10_001  # at `high` no cosine is accepted
    while high - low > 1:
        middle = (low + high) // 2
        reached = (searches.others >= np.float32(middle * _STEP)).sum(axis=1)
        if 1.0 - float(_none(reached, searches.others.shape[1], size).mean()) <= fpir:
            high = middle
        else:
            low = middle
    return round(high * _STEP, 4)


def _fnir(searches: Searches, size: int, threshold: float) -> float:
    others = searches.others.shape[1]
    if size > others:
        alone = (1.0 - _reaching(searches, searches.mate)) ** (size - 1)
    else:
        better = (searches.others[searches.mated] >= searches.mate[:, None]).sum(axis=1)
        alone = _none(better, others, size - 1)
    return 1.0 - float(np.where(searches.mate >= np.float32(threshold), alone, 0.0).mean())


def _none(reached: NDArray[np.intp], others: int, size: int) -> Floats:
    """The chance that none of the persons who reach something is in a gallery of a size, for each [n]."""
    if size > others:
        return np.array([(1.0 - float(reached.mean()) / others) ** size])
    values, where = np.unique(reached, return_inverse=True)
    result: Floats = np.array([_hypergeometric(int(k), others, size) for k in values])[where]
    return result


def _reaching(searches: Searches, similarities: NDArray[np.float32]) -> Floats:
    """The share of all pairs of strangers that reach each of these similarities, to four digits: [n]."""
    bins = round(2 / _STEP) + 1
    counts = np.zeros(bins, np.int64)
    for row in searches.others:
        counts += np.bincount(_bin(row), minlength=bins)
    shares: Floats = np.cumsum(counts[::-1])[::-1] / searches.others.size
    result: Floats = shares[_bin(similarities)]
    return result


def _bin(similarities: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.floor((similarities.clip(-1.0, 1.0) + 1.0) / _STEP).astype(np.intp)


def _hypergeometric(reached: int, others: int, size: int) -> float:
    """C(others - reached, size) / C(others, size)."""
    if others - reached < size:
        return 0.0
    log = math.lgamma
    return math.exp(
        log(others - reached + 1)
        - log(others - reached - size + 1)
        - log(others + 1)
        + log(others - size + 1)
    )


def _wilson(hits: int, count: int) -> Share:
    share = hits / count
    square = _Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return Share(share, max(0.0, middle - half), min(1.0, middle + half))
