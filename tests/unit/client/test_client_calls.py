"""What the calls send and what they make of the answers, by both clients."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mien

PHOTO = b"a photo"
Call = Callable[..., Any]


def test_detect_without_options_leaves_every_choice_to_the_server(call: Call, peer: Any) -> None:
    call("detect", PHOTO)
    [received] = peer.received
    assert received.request.image.encoded == PHOTO
    assert not received.request.HasField("detector")
    assert not received.request.HasField("selection")
    assert "mien-timing" not in received.metadata


def test_detect_sends_its_options(call: Call, peer: Any) -> None:
    call(
        "detect",
        PHOTO,
        policy="center_largest",
        min_score=0.5,
        min_face_size=0,
        max_faces=3,
        detector=("retinaface", 4),
    )
    request = peer.received[0].request
    assert request.selection.policy == 2
    assert request.selection.min_score == 0.5
    assert request.selection.HasField("min_face_size")
    assert request.selection.min_face_size == 0
    assert request.selection.max_faces == 3
    assert (request.detector.name, request.detector.version) == ("retinaface", 4)


def test_detect_answers_faces(call: Call) -> None:
    result = call("detect", PHOTO)
    assert len(result.faces) == 2
    face = result.faces[0]
    assert face.box == mien.Box(10.5, 20.25, 60, 90)
    assert face.box.width == 49.5
    assert face.box.height == 69.75
    assert face.box_normalized is not None
    assert face.score == pytest.approx(0.97)
    assert face.landmarks.right_mouth == mien.Point(15, 25)
    assert face.embedding is None
    assert result.detector == mien.ModelIdentity("retinaface", 1, "fedcba9876543210")
    assert (result.image_width, result.image_height) == (100, 100)
    assert result.timing == ()


def test_embed_sends_its_options(call: Call, peer: Any) -> None:
    call("embed", PHOTO, policy=mien.FacePolicy.ALL, embedder="sface:2", detector="retinaface")
    request = peer.received[0].request
    assert request.selection.policy == 3
    assert not request.selection.HasField("max_faces")
    assert (request.embedder.name, request.embedder.version) == ("sface", 2)
    assert (request.detector.name, request.detector.version) == ("retinaface", 0)


def test_embed_answers_a_read_only_float32_vector_with_its_model(call: Call) -> None:
    embedding = call("embed", PHOTO).embedding
    assert embedding.values.dtype == np.float32
    np.testing.assert_array_equal(embedding.values, np.array([0.6, -0.8, 0, 0], np.float32))
    assert not embedding.values.flags.writeable
    assert embedding.norm == 9.5
    assert embedding.model == mien.ModelIdentity("sface", 2, "0123456789abcdef")


def test_an_aligned_crop_is_sent_as_one_and_its_face_has_no_box(call: Call, peer: Any) -> None:
    crop = np.zeros((112, 112, 3), np.uint8)
    result = call("embed", crop, aligned=True)
    pixels = peer.received[0].request.image.aligned_face.pixels
    assert (pixels.height, pixels.width, len(pixels.data)) == (112, 112, 112 * 112 * 3)
    assert result.detector is None
    assert result.faces[0].box is None
    assert result.faces[0].landmarks is None
    call("embed", PHOTO, aligned=True)
    assert peer.received[1].request.image.aligned_face.encoded == PHOTO


def test_verify_sends_its_options(call: Call, peer: Any) -> None:
    call("verify", PHOTO, b"other", threshold=0.0, policy="require_one", embedder="sface")
    request = peer.received[0].request
    assert request.a.image.encoded == PHOTO
    assert request.b.image.encoded == b"other"
    assert request.HasField("threshold")
    assert request.threshold == 0
    assert request.selection.policy == 4
    assert request.embedder.name == "sface"


def test_verify_takes_an_embedding_from_an_earlier_answer(call: Call, peer: Any) -> None:
    embedding = call("embed", PHOTO).embedding
    call("verify", embedding, PHOTO)
    sent = peer.received[1].request.a.embedding
    np.testing.assert_array_equal(np.array(sent.values, np.float32), embedding.values)
    assert sent.norm == 9.5
    assert (sent.model.name, sent.model.version) == ("sface", 2)
    assert sent.model.fingerprint == "0123456789abcdef"


def test_verify_answers_where_the_threshold_came_from(call: Call) -> None:
    result = call("verify", PHOTO, PHOTO)
    assert result.similarity == pytest.approx(0.61)
    assert result.threshold == pytest.approx(0.363)
    assert result.threshold_source == "model"
    assert result.matched
    strict = call("verify", PHOTO, PHOTO, threshold=0.9)
    assert strict.threshold_source == "request"
    assert not strict.matched
    assert strict.embedder.name == "sface"
    assert strict.detector.name == "retinaface"
    assert strict.face_b.embedding.norm == 9.5


def test_timing_comes_on_request(call: Call, peer: Any) -> None:
    result = call("verify", PHOTO, PHOTO, timing=True)
    assert peer.received[0].metadata["mien-timing"] == "1"
    assert result.timing == (
        mien.StageTiming("decode", 3.1),
        mien.StageTiming("detect.compute", 9.5, batch=4),
    )


@pytest.mark.parametrize("model", ["sface:", "sface:x", "sface:-1", "sface:1:2"])
def test_a_version_that_is_no_number_is_refused(call: Call, peer: Any, model: str) -> None:
    with pytest.raises(mien.InvalidRequest) as caught:
        call("embed", PHOTO, embedder=model)
    assert caught.value.field == "embedder.version"
    assert peer.received == []


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (3, "embedder"),
        (1.5, "embedder"),
        (b"sface", "embedder"),
        (("sface",), "embedder"),
        (("sface", "1"), "embedder"),
        (("sface", 1.0), "embedder"),
        ((1, "sface"), "embedder"),
        ("", "embedder.name"),
        (":1", "embedder.name"),
        (("", 1), "embedder.name"),
        ("caf\udce9", "embedder.name"),
    ],
)
def test_what_names_no_model_is_refused_with_what_does(
    call: Call, peer: Any, model: Any, field: str
) -> None:
    with pytest.raises(mien.InvalidRequest, match='"name:version", \\(name, version\\)') as caught:
        call("embed", PHOTO, embedder=model)
    assert (caught.value.reason, caught.value.field) == ("INVALID_OPTION", field)
    assert repr(model) in caught.value.message
    assert peer.received == []


def test_a_model_is_named_by_the_identity_of_an_answer(call: Call, peer: Any) -> None:
    known = call("embed", PHOTO).embedding
    for model in (known.model, ("sface", np.int64(2)), ["sface", 2]):
        call("embed", PHOTO, embedder=model)
        asked = peer.received[-1].request.embedder
        assert (asked.name, asked.version) == ("sface", 2)


@pytest.mark.parametrize(
    ("method", "option", "value", "field"),
    [
        ("detect", "min_score", "0.5", "selection.min_score"),
        ("detect", "min_face_size", [40], "selection.min_face_size"),
        ("embed", "max_faces", 1.0, "selection.max_faces"),
        ("embed", "max_faces", "1", "selection.max_faces"),
        ("embed", "policy", 3, "selection.policy"),
        ("embed", "policy", ["all"], "selection.policy"),
        ("verify", "threshold", "0.4", "threshold"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_with_its_field(
    call: Call, peer: Any, method: str, option: str, value: Any, field: str
) -> None:
    with pytest.raises(mien.InvalidRequest, match=f"{option} must be") as caught:
        call(method, *[PHOTO] * (2 if method == "verify" else 1), **{option: value})
    assert (caught.value.reason, caught.value.field) == ("INVALID_OPTION", field)
    assert repr(value) in caught.value.message
    assert peer.received == []


def test_numbers_of_numpy_are_options(call: Call, peer: Any) -> None:
    call(
        "detect", PHOTO, min_score=np.float32(0.5), min_face_size=np.int64(4), max_faces=np.uint8(3)
    )
    selection = peer.received[0].request.selection
    assert (selection.min_score, selection.min_face_size, selection.max_faces) == (0.5, 4, 3)


@pytest.mark.parametrize(
    "model",
    [None, {"name": "sface"}, mien.ModelIdentity("sface", "1", "")],  # type: ignore[arg-type]
)
def test_an_embedding_without_a_proper_model_is_refused(call: Call, peer: Any, model: Any) -> None:
    with pytest.raises(mien.InvalidRequest, match="must be a ModelIdentity") as caught:
        call("verify", PHOTO, mien.Embedding(np.ones(4, np.float32), 1.0, model))
    assert (caught.value.reason, caught.value.field) == ("INVALID_EMBEDDING", "b.embedding.model")
    assert peer.received == []


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_count_that_the_contract_cannot_hold_is_refused(call: Call, number: int) -> None:
    with pytest.raises(mien.InvalidRequest) as caught:
        call("detect", PHOTO, max_faces=number)
    assert (caught.value.reason, caught.value.field) == ("INVALID_OPTION", "selection.max_faces")


@pytest.mark.parametrize("version", [-(2**63) - 1, 2**63])
def test_a_version_that_the_contract_cannot_hold_is_refused(call: Call, version: int) -> None:
    with pytest.raises(mien.InvalidRequest) as caught:
        call("detect", PHOTO, detector=("retinaface", version))
    assert (caught.value.reason, caught.value.field) == ("INVALID_OPTION", "detector.version")


def test_an_unknown_policy_is_refused_with_those_there_are(call: Call) -> None:
    with pytest.raises(mien.InvalidRequest, match="largest, center_largest, all, require_one"):
        call("detect", PHOTO, policy="biggest")


@pytest.mark.parametrize("method", ["detect", "embed", "verify", "close"])
def test_both_clients_read_as_one(method: str) -> None:
    blocking = inspect.signature(getattr(mien.Client, method))
    asyncio_ = inspect.signature(getattr(mien.AsyncClient, method))
    assert blocking == asyncio_


def test_every_option_is_keyword_only() -> None:
    for method in (mien.Client.detect, mien.Client.embed, mien.Client.verify):
        positional = [
            name
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        assert positional in (["self", "image"], ["self", "a", "b"])
