"""The figures, against the naive formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien_server.evaluation.metrics import (
    FARS,
    accuracy_by_folds,
    best_threshold,
    lowest_far,
    operation,
    rates_at,
    roc,
)

Pairs = list[tuple[float, bool]]
pairs_of_both_kinds = st.lists(
    st.tuples(st.integers(-10, 10).map(lambda n: n / 10), st.booleans()), min_size=2, max_size=40
).filter(lambda pairs: len({same for _, same in pairs}) == 2)


def _right(pairs: Pairs, threshold: float) -> int:
    return sum((similarity >= threshold) == same for similarity, same in pairs)


def _arrays(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs]), np.array([same for _, same in pairs])


@given(pairs_of_both_kinds)
def test_no_threshold_gets_more_pairs_right_than_the_best(pairs: Pairs) -> None:
    best = best_threshold(*_arrays(pairs))
    tried = [s + e for s, _ in pairs for e in (-1e-6, 0, 1e-6)]
    assert _right(pairs, best) == max(_right(pairs, t) for t in [*tried, -2, 2])


def test_the_best_threshold_is_in_the_middle_of_the_widest_gap() -> None:
    similarity = np.array([0.1, 0.2, 0.6, 0.7])
    assert best_threshold(similarity, np.array([False, False, True, True])) == pytest.approx(0.4)


@given(pairs_of_both_kinds, st.sampled_from([0.9, 0.5, 0.3, 0.2]))
def test_an_operation_keeps_its_rate_and_no_lower_threshold_does(pairs: Pairs, far: float) -> None:
    similarity, same = _arrays(pairs)
    impostors = [s for s, is_same in pairs if not is_same]
    found = operation(similarity, same, far)
    if len(impostors) < 3 / far:
        assert (found.threshold, found.tar) == (None, None)
        return
    assert found.threshold is not None
    accepted = [s for s in impostors if s >= found.threshold]
    assert len(accepted) <= far * len(impostors) + 1e-9
    lower = [s for s in impostors if s >= found.threshold - 1e-6]
    assert len(lower) > far * len(impostors) + 1e-9
    genuine = [s for s, is_same in pairs if is_same]
    assert found.tar == pytest.approx(sum(s >= found.threshold for s in genuine) / len(genuine))


def test_three_impostor_pairs_per_expected_accept_are_needed() -> None:
    generator = np.random.default_rng(0)
    similarity, same = generator.uniform(size=400), np.arange(400) < 100
    found = {far: operation(similarity, same, far) for far in FARS}
    assert [far for far in FARS if found[far].tar is not None] == [0.1, 0.01]
    assert found[0.001].needed == 3000
    assert lowest_far(300) == pytest.approx(0.01)


@given(pairs_of_both_kinds)
def test_the_roc_rises_from_nothing_to_all_and_is_what_thresholds_do(pairs: Pairs) -> None:
    similarity, same = _arrays(pairs)
    curve = roc(similarity, same)
    assert (curve.far[0], curve.tar[0]) == (0, 0)
    assert (curve.far[-1], curve.tar[-1]) == (1, 1)
    assert (np.diff(curve.far) >= 0).all()
    assert (np.diff(curve.tar) >= 0).all()
    for threshold, far, tar in zip(
        sorted({s for s, _ in pairs}, reverse=True), curve.far[1:], curve.tar[1:], strict=True
    ):
        rates = rates_at(similarity, same, threshold)
        assert [rates.far, rates.tar] == pytest.approx([far, tar])


@given(pairs_of_both_kinds, st.integers(2, 10))
def test_each_fold_is_judged_by_the_threshold_of_the_others(pairs: Pairs, count: int) -> None:
    similarity, same = _arrays(pairs)
    folds = np.arange(len(pairs)) % count
    found = accuracy_by_folds(similarity, same, folds)
    scores = []
    for fold in sorted(set(folds.tolist())):
        others = [pair for pair, f in zip(pairs, folds, strict=True) if f != fold]
        own = [pair for pair, f in zip(pairs, folds, strict=True) if f == fold]
        if len({is_same for _, is_same in others}) < 2:
            assert found is None
            return
        threshold = best_threshold(*_arrays(others))
        scores.append(_right(own, threshold) / len(own))
    assert found is not None
    assert found.mean == pytest.approx(sum(scores) / len(scores))
    assert found.std == pytest.approx(
        (sum((score - found.mean) ** 2 for score in scores) / len(scores)) ** 0.5
    )
    assert len(found.thresholds) == found.folds == len(scores)
