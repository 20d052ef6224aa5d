import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mien_server.errors import InvalidRequest, Reason, Unmet, at
from mien_server.pipeline.compare import (
    check_embedding,
    check_length,
    check_same_model,
    cosine,
)
from mien_server.pipeline.embedding import to_embedding
from mien_server.pipeline.types import ArrayF32, Embedding, ModelIdentity
from mien_server.scheduling.errors import RowFailed

SFACE = ModelIdentity("sface", 1, "0123456789abcdef")
UNIT = np.eye(128, dtype=np.float32)[0]


def theirs(values: object, model: ModelIdentity = SFACE) -> Embedding:
    return Embedding(np.asarray(values, np.float32), 1.0, model)


@given(arrays(np.float32, 128, elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_a_raw_vector_becomes_one_of_unit_length_or_a_failure(raw: ArrayF32) -> None:
    norm = float(np.linalg.norm(raw.astype(np.float64)))
    if norm == 0:
        with pytest.raises(RowFailed):
            to_embedding(raw, SFACE)
        return
    embedding = to_embedding(raw, SFACE)
    assert embedding.values.dtype == np.float32
    assert np.linalg.norm(embedding.values.astype(np.float64)) == pytest.approx(1, abs=1e-6)
    assert embedding.norm == pytest.approx(norm)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_a_useless_vector_of_the_model_is_a_failure_to_be_found_in_the_log(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    raw = np.full(128, value, np.float32)
    with caplog.at_level(logging.ERROR), pytest.raises(RowFailed) as caught:
        to_embedding(raw, SFACE)
    assert caught.value.incident
    (told,) = [each for each in caplog.records if hasattr(each, "incident")]
    facts = [vars(told)[key] for key in ("incident", "model", "version")]
    assert facts == [caught.value.incident, "sface", 1]


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 128, 512]))
def test_cosine_is_that_of_numpy_and_never_leaves_its_range(seed: int, size: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, size))
    unit_a, unit_b = (to_embedding(v.astype(np.float32), SFACE).values for v in (a, b))
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine(unit_a, unit_b) == pytest.approx(expected, abs=1e-5)
    assert cosine(unit_a, unit_a) <= 1.0
    assert cosine(unit_a, -unit_a) >= -1.0


@pytest.mark.parametrize("norm", [1.0, 0.9991, 1.0009])
def test_an_embedding_of_nearly_unit_length_is_brought_to_it(norm: float) -> None:
    checked = check_embedding(theirs(UNIT * norm))
    assert np.linalg.norm(checked.values) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no values"),
        ([[1.0, 0.0]], "no values"),
        (UNIT * math.nan, "NaN"),
        (np.where(np.arange(128) == 3, math.nan, UNIT), "NaN"),
        (np.where(np.arange(128) == 3, math.inf, UNIT), "infinite"),
        (UNIT * 0, "zero vector"),
        (UNIT * 0.99, r"0\.99 instead of 1"),
        (UNIT * 1.01, r"1\.01 instead of 1"),
        (UNIT * 1e30, "instead of 1"),
        (np.full(128, 3e38), "instead of 1"),
        (UNIT * 1e-40, "instead of 1"),
    ],
)
def test_unusable_values_are_refused(values: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught, at("b.embedding"):
        check_embedding(theirs(values))
    assert caught.value.reason is Reason.INVALID_EMBEDDING
    assert caught.value.field == "b.embedding.values"


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf, -1.0])
def test_norm_that_no_vector_can_have_had_is_refused(norm: float) -> None:
    # SQLite keeps no NaN: a gallery failed on it, for all faces of the call.
    with pytest.raises(InvalidRequest, match="norm") as caught, at("subject.embedding"):
        check_embedding(replace(theirs(UNIT), norm=norm))
    assert caught.value.reason is Reason.INVALID_EMBEDDING
    assert caught.value.field == "subject.embedding.norm"
    assert check_embedding(replace(theirs(UNIT), norm=0.0)).norm == 0


@pytest.mark.parametrize(
    "model", [ModelIdentity("", 0, ""), ModelIdentity("sface", 1, ""), ModelIdentity("", 1, "0")]
)
def test_an_embedding_without_its_model_is_refused(model: ModelIdentity) -> None:
    with pytest.raises(InvalidRequest) as caught, at("b.embedding"):
        check_embedding(theirs(UNIT, model))
    assert caught.value.reason is Reason.INVALID_EMBEDDING
    assert caught.value.field == "b.embedding.model"


def test_fingerprints_decide_and_not_names() -> None:
    check_same_model(theirs(UNIT), ModelIdentity("renamed", 7, SFACE.fingerprint))
    with pytest.raises(Unmet, match="fedcba9876543210") as caught, at("b.embedding"):
        check_same_model(theirs(UNIT), ModelIdentity("sface", 1, "fedcba9876543210"))
    assert caught.value.reason is Reason.EMBEDDING_MISMATCH
    assert caught.value.field == "b.embedding.model"


def test_another_length_than_the_model_s_is_refused() -> None:
    check_length(theirs(UNIT), 128)
    message = "512 values where sface gives 128"
    with pytest.raises(InvalidRequest, match=message) as caught, at("b.embedding"):
        check_length(theirs(np.eye(512)[0]), 128)
    assert caught.value.reason is Reason.INVALID_EMBEDDING
    assert caught.value.field == "b.embedding.values"
