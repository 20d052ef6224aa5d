"""Between messages and the pipeline's vocabulary."""

import numpy as np
import pytest

from mien.v1 import face_pb2
from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.types import (
    AlignedFace,
    Comparison,
    Embedding,
    EncodedImage,
    Face,
    FacePolicy,
    ImageSource,
    ModelIdentity,
    PhotoFaces,
    RawPixels,
)
from mien_server.rpc.faces import (
    detect_response,
    embed_response,
    face_selection,
    image_source,
    model_ref,
    subject_source,
    verify_response,
)

PIXELS = face_pb2.Pixels(height=2, width=1, data=b"abcdef")
MODEL = ModelIdentity("sface", 3, "0123456789abcdef")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (face_pb2.Image(encoded=b"jpeg"), EncodedImage(b"jpeg")),
        (face_pb2.Image(encoded=b""), EncodedImage(b"")),
        (face_pb2.Image(pixels=PIXELS), RawPixels(2, 1, b"abcdef")),
        (
            face_pb2.Image(aligned_face=face_pb2.AlignedFace(encoded=b"png")),
            AlignedFace(EncodedImage(b"png")),
        ),
        (
            face_pb2.Image(aligned_face=face_pb2.AlignedFace(pixels=PIXELS)),
            AlignedFace(RawPixels(2, 1, b"abcdef")),
        ),
    ],
)
def test_picture_keeps_its_bytes(image: face_pb2.Image, expected: ImageSource) -> None:
    assert image_source(image, "a.image") == expected


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (face_pb2.Image(), "image"),
        (face_pb2.Image(aligned_face=face_pb2.AlignedFace()), "image.aligned_face"),
    ],
)
def test_picture_without_a_source_names_what_to_set(image: face_pb2.Image, field: str) -> None:
    with pytest.raises(InvalidRequest, match="encoded") as caught:
        image_source(image, "image")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, field)


def test_embedding_of_a_subject_keeps_values_and_model() -> None:
    values = np.linspace(-1, 1, 512, dtype=np.float32)
    model = face_pb2.ModelIdentity(name="sface", version=3, fingerprint=MODEL.fingerprint)
    message = face_pb2.Embedding(values=values.tolist(), norm=7.5, model=model)
    source = subject_source(face_pb2.Subject(embedding=message), "b")
    assert isinstance(source, Embedding)
    assert source.values.dtype == np.float32
    np.testing.assert_array_equal(source.values, values)
    assert (source.norm, source.model) == (7.5, MODEL)


def test_subject_without_a_side_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        subject_source(face_pb2.Subject(), "b")
    assert caught.value.field == "b"


def test_negative_version_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        model_ref(face_pb2.ModelRef(name="sface", version=-1), "embedder")
    assert (caught.value.reason, caught.value.field) == (
        Reason.INVALID_OPTION,
        "embedder.version",
    )


def test_unset_options_of_a_selection_stay_unset() -> None:
    selection = face_selection(face_pb2.FaceSelection(), FacePolicy.ALL)
    assert selection.policy is FacePolicy.ALL
    assert (selection.min_score, selection.min_face_size, selection.max_faces) == (None,) * 3
    zeros = face_pb2.FaceSelection(min_score=0, min_face_size=0, max_faces=0)
    selection = face_selection(zeros, FacePolicy.ALL)
    assert (selection.min_score, selection.min_face_size, selection.max_faces) == (0, 0, 0)


@pytest.mark.parametrize("name", face_pb2.FacePolicy.keys()[1:])
def test_every_policy_of_the_contract_is_known(name: str) -> None:
    message = face_pb2.FaceSelection(policy=face_pb2.FacePolicy.Value(name))
    assert f"FACE_POLICY_{face_selection(message, FacePolicy.ALL).policy}" == name


def test_policy_of_another_contract_is_refused() -> None:
    message = face_pb2.FaceSelection.FromString(b"\x08\x63")
    with pytest.raises(InvalidRequest, match="99") as caught:
        face_selection(message, FacePolicy.ALL)
    assert caught.value.field == "selection.policy"


def a_face(embedding: Embedding | None = None) -> Face:
    return Face(
        box=np.array([10, 20, 30, 60], np.float32),
        score=0.75,
        landmarks=np.arange(10, dtype=np.float32).reshape(5, 2),
        embedding=embedding,
    )


def test_detected_face_is_sent_in_pixels_and_in_fractions() -> None:
    answer = detect_response(PhotoFaces([a_face()], width=100, height=200, detector=MODEL))
    (face,) = answer.faces
    assert (face.box.x1, face.box.y1, face.box.x2, face.box.y2) == (10, 20, 30, 60)
    fractions = face.box_normalized
    assert [fractions.x1, fractions.y1, fractions.x2, fractions.y2] == pytest.approx(
        [0.1, 0.1, 0.3, 0.3]
    )
    assert (face.landmarks.left_eye.x, face.landmarks.right_mouth.y) == (0, 9)
    # Who asked no analysers gets the bytes that there were before there were any.
    sent = {field.name for field, _ in face.ListFields()}
    assert sent == {"box", "box_normalized", "score", "landmarks"}
    assert (answer.image_width, answer.image_height) == (100, 200)
    assert answer.detector.fingerprint == MODEL.fingerprint


def test_face_of_a_crop_has_no_place() -> None:
    embedding = Embedding(np.full(4, 0.5, np.float32), norm=3, model=MODEL)
    face = Face(box=None, score=0, landmarks=None, embedding=embedding)
    answer = embed_response(PhotoFaces([face], width=112, height=112, embedder=MODEL))
    (sent,) = answer.faces
    assert not sent.HasField("box")
    assert not sent.HasField("box_normalized")
    assert not sent.HasField("landmarks")
    assert not answer.HasField("detector")
    assert list(sent.embedding.values) == [0.5] * 4
    assert sent.embedding.model.version == 3


@pytest.mark.parametrize(
    ("from_request", "source"),
    [(True, face_pb2.THRESHOLD_SOURCE_REQUEST), (False, face_pb2.THRESHOLD_SOURCE_MODEL)],
)
def test_comparison_says_where_its_threshold_came_from(
    from_request: bool, source: face_pb2.ThresholdSource.ValueType
) -> None:
    compared = Comparison(
        similarity=0.5,
        threshold=0.25,
        threshold_from_request=from_request,
        matched=True,
        face_a=a_face(),
        face_b=Face(box=None, score=0, landmarks=None),
        detector=None,
        embedder=MODEL,
        size_a=(100, 200),
    )
    answer = verify_response(compared)
    assert (answer.similarity, answer.threshold, answer.matched) == (0.5, 0.25, True)
    assert answer.threshold_source == source
    assert answer.face_a.box_normalized.x1 == pytest.approx(0.1)
    assert not answer.face_b.HasField("box")
    assert not answer.HasField("detector")
