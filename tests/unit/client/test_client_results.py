"""The results as data: JSON, copies, and what stays exact on the way."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

import mien

Call = Callable[..., Any]
SFACE = {"name": "sface", "version": 2, "fingerprint": "0123456789abcdef"}
RETINAFACE = {"name": "retinaface", "version": 1, "fingerprint": "fedcba9876543210"}
FACE = {
    "box": [10.5, 20.25, 60, 90],
    "score": 0.97,
    "landmarks": {
        "left_eye": [11, 21],
        "right_eye": [12, 22],
        "nose": [13, 23],
        "left_mouth": [14, 24],
        "right_mouth": [15, 25],
    },
}
EMBEDDING = {"embedding": [0.6, -0.8, 0, 0], "norm": 9.5, "model": SFACE}
TIMING = [
    {"name": "decode", "milliseconds": 3.1, "batch": None},
    {"name": "detect.compute", "milliseconds": 9.5, "batch": 4},
]


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def test_detect_as_dict(call: Call) -> None:
    assert through_json(call("detect", b"photo", timing=True).as_dict()) == {
        "faces": [FACE, FACE],
        "detector": RETINAFACE,
        "image_width": 100,
        "image_height": 100,
        "timing": TIMING,
    }


def test_embed_as_dict(call: Call) -> None:
    assert through_json(call("embed", b"photo").as_dict()) == {
        "faces": [{**FACE, **EMBEDDING}],
        "model": SFACE,
        "detector": RETINAFACE,
        "image_width": 100,
        "image_height": 100,
    }


def test_embed_of_a_crop_as_dict(call: Call) -> None:
    result = through_json(call("embed", b"photo", aligned=True).as_dict())
    assert result["detector"] is None
    assert result["faces"] == [{"box": None, "score": 0, "landmarks": None, **EMBEDDING}]


def test_verify_as_dict(call: Call) -> None:
    assert through_json(call("verify", b"photo", b"other").as_dict()) == {
        "similarity": 0.61,
        "threshold": 0.363,
        "threshold_source": "model",
        "matched": True,
        "model": SFACE,
        "detector": RETINAFACE,
        "faces": [FACE, FACE],
    }


def test_an_embedding_comes_back_from_json_to_the_last_bit() -> None:
    values = np.random.default_rng(7).standard_normal(512).astype(np.float32)
    values /= np.linalg.norm(values)
    model = mien.ModelIdentity("arcface", 3, "00ff00ff00ff00ff")
    embedding = mien.Embedding(values, float(np.float32(21.7)), model)
    again = mien.Embedding.from_dict(through_json(embedding.as_dict()))
    np.testing.assert_array_equal(again.values, values)
    assert again.values.dtype == np.float32
    assert again.norm == embedding.norm
    assert again.model == model


def test_a_face_of_embeds_json_is_an_embedding_too(call: Call) -> None:
    [face] = through_json(call("embed", b"photo").as_dict())["faces"]
    assert mien.Embedding.from_dict(face).norm == 9.5


def test_an_embedding_keeps_its_own_read_only_copy() -> None:
    values = np.ones(4, np.float32)
    embedding = mien.Embedding(values, 1.0, mien.ModelIdentity("sface", 1, ""))
    values[0] = 5
    assert embedding.values[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        embedding.values[0] = 5


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda known: pickle.loads(pickle.dumps(known))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_an_embedding_is_read_only_too(copied: Callable[[Any], Any]) -> None:
    embedding = mien.Embedding(np.ones(4, np.float32), 9.1, mien.ModelIdentity("sface", 1, ""))
    again = copied(embedding)
    assert again.as_dict() == embedding.as_dict()
    with pytest.raises(ValueError, match="read-only"):
        again.values[0] = 5


def test_an_embedding_is_a_vector() -> None:
    with pytest.raises(ValueError, match=r"\[d\], not \(1, 4\)"):
        mien.Embedding(np.ones((1, 4), np.float32), 1.0, mien.ModelIdentity("sface", 1, ""))


def test_results_are_frozen_and_survive_pickling(call: Call) -> None:
    result = call("verify", b"photo", b"other", timing=True)
    with pytest.raises(FrozenInstanceError):
        result.matched = False
    assert pickle.loads(pickle.dumps(result)).as_dict() == result.as_dict()  # noqa: S301


def test_no_faces_no_embedding(call: Call, peer: Any) -> None:
    from mien.v1 import face_pb2 as pb

    peer.script.append(lambda request, context: pb.EmbedResponse())
    result = call("embed", b"photo", policy="all")
    assert result.embeddings == ()
    with pytest.raises(IndexError):
        _ = result.embedding
