"""Requests and answers of galleries as the SDK makes and reads them, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mien
from mien import enrol_messages
from mien import gallery_messages as messages
from mien.photo_folders import people_in
from mien.v1 import face_pb2, gallery_pb2

MODEL = mien.ModelIdentity("sface", 1, "0123456789abcdef")
EMBEDDING = mien.Embedding(np.array([0.6, 0.8], np.float32), 9.5, MODEL)


def enrol(*faces: mien.NewFace, **options: Any) -> gallery_pb2.EnrolRequest:
    usual: dict[str, Any] = {"quality_policy": "refuse", "policy": None, "min_score": None}
    rest: dict[str, Any] = {"detector": None, "analysers": (), "require": ()}
    return enrol_messages.enrol_request(
        "staff",
        faces,
        **{**usual, "min_face_size": None, "require_quality": False, **rest, **options},
    )


def identify(**options: Any) -> gallery_pb2.IdentifyRequest:
    usual = dict.fromkeys(("top_k", "threshold", "labels", "policy", "min_score", "min_face_size"))
    rest: dict[str, Any] = {"aligned": False, "max_faces": None, "detector": None}
    return messages.identify_request(["staff"], EMBEDDING, **{**usual, **rest, **options})


def test_every_face_has_a_key_so_that_a_retry_enrols_it_once() -> None:
    keys = {face.request_key for face in enrol(*[mien.NewFace(EMBEDDING, "ann")] * 3).faces} | {
        face.request_key for face in enrol(mien.NewFace(EMBEDDING, "ann")).faces
    }
    assert len(keys) == 4
    assert "" not in keys
    (own,) = enrol(mien.NewFace(EMBEDDING, "ann", request_key="mine")).faces
    assert own.request_key == "mine"


def test_requests_say_what_was_asked() -> None:
    request = enrol(
        mien.NewFace(b"photo", "ann", {"site": "ulm"}, aligned=True),
        quality_policy="warn",
        policy="require_one",
        detector="retinaface:2",
        analysers=["age"],
        require=[mien.Requirement("live", at_least=0.5)],
        require_quality=True,
    )
    (face,) = request.faces
    assert face.subject.image.aligned_face.encoded == b"photo"
    assert (face.person_id, dict(face.labels)) == ("ann", {"site": "ulm"})
    assert request.quality_policy == gallery_pb2.QUALITY_POLICY_WARN
    assert request.selection.policy == face_pb2.FACE_POLICY_REQUIRE_ONE
    assert request.detector.version == 2
    assert (request.require.quality, request.require.analysers[0].at_least) == (True, 0.5)
    assert [ref.name for ref in request.analysers] == ["age"]
    assert not enrol(mien.NewFace(b"photo", "ann")).HasField("require")
    asked = identify(top_k=3, threshold=-1, labels={"a": "b"}, policy="all", max_faces=7)
    assert (asked.top_k, asked.threshold, dict(asked.labels)) == (3, -1, {"a": "b"})
    assert asked.selection.max_faces == 7
    assert not identify().HasField("threshold")


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: enrol(mien.NewFace(EMBEDDING, 7)), "faces[0].person_id"),  # type: ignore[arg-type]
        (lambda: enrol(mien.NewFace(EMBEDDING, "\ud800")), "faces[0].person_id"),
        (lambda: enrol(mien.NewFace(EMBEDDING, "a", {"k": 1})), "faces[0].labels"),  # type: ignore[dict-item]
        (lambda: enrol(mien.NewFace(EMBEDDING, "a"), quality_policy="best"), "quality_policy"),
        (lambda: enrol(mien.NewFace(b"x" * 2**25, "a")), "faces"),
        (lambda: identify(top_k="five"), "top_k"),
        (lambda: identify(threshold="low"), "threshold"),
        (lambda: identify(labels={"k": None}), "labels"),
        (lambda: messages.create_request("a", 5, None), "embedder"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_no_request_can_say_is_refused_before_it_is_sent(
    ask: Callable[[], object], field: str
) -> None:
    with pytest.raises(mien.InvalidRequest) as caught:
        ask()
    assert caught.value.field == field


def test_refused_face_is_the_exception_that_its_reason_names() -> None:
    def told(reason: str) -> gallery_pb2.EnrolResponse:
        result = gallery_pb2.EnrolResult(
            outcome=gallery_pb2.ENROL_OUTCOME_REFUSED, reason=reason, message="why", field="f"
        )
        return gallery_pb2.EnrolResponse(results=[result])

    kinds = {
        "LOW_QUALITY": mien.LowQuality,
        "FACE_NOT_FOUND": mien.FaceNotFound,
        "EMBEDDING_MISMATCH": mien.EmbeddingMismatch,
        "IMAGE_TOO_LARGE": mien.InvalidRequest,
        "BACKEND_ERROR": mien.ServerError,
    }
    for reason, kind in kinds.items():
        with pytest.raises(mien.MienError) as caught:
            enrol_messages.enrolled_or_raise(told(reason))
        assert type(caught.value) is kind
        assert (caught.value.reason, caught.value.field, caught.value.method) == (
            reason,
            "f",
            "Enrol",
        )


def test_answers_are_ready_for_json() -> None:
    quality = face_pb2.FaceQuality(sharpness=0.2, brightness=0.5, contrast=0.1, size=80)
    issue = gallery_pb2.QualityIssue(
        problem=gallery_pb2.QUALITY_PROBLEM_LIKE_ANOTHER_PERSON,
        value=0.9,
        limit=0.68,
        person_id="bob",
    )
    response = gallery_pb2.EnrolResponse(
        results=[
            gallery_pb2.EnrolResult(
                outcome=gallery_pb2.ENROL_OUTCOME_ENROLLED,
                face_id="0" * 16,
                person_id="ann",
                quality=quality,
                issues=[issue],
            )
        ]
    )
    (result,) = enrol_messages.enrol_results(response)
    assert result.quality is not None
    assert (result.quality.size, result.quality.yaw) == (80, None)
    told = json.loads(json.dumps(result.as_dict()))
    assert told["issues"] == [
        {"problem": "like_another_person", "value": 0.9, "limit": 0.68, "person": "bob"}
    ]
    found = messages.identify_result(
        gallery_pb2.IdentifyResponse(faces=[gallery_pb2.IdentifiedFace()]), ()
    )
    assert (found.best, found.persons) == (None, ())
    assert json.loads(json.dumps(found.as_dict()))["faces"] == [{"face": None, "persons": []}]
    assert messages.identify_result(gallery_pb2.IdentifyResponse(), ()).best is None


def test_folder_is_a_person_however_deep_its_photos_lie(tmp_path: Path) -> None:
    for path in ("ann/1.jpg", "ann/more/2.PNG", "bob/3.webp", "bob/notes.txt", "loose.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    found = [(who, path.name) for who, path in people_in(tmp_path)]
    assert found == [("ann", "1.jpg"), ("ann", "2.PNG"), ("bob", "3.webp")]
    with pytest.raises(mien.InvalidRequest, match="PERSON/PHOTO"):
        people_in(tmp_path / "ann" / "more")


def test_face_is_known_by_its_bytes_and_its_person() -> None:
    pixels = np.zeros((112, 112, 3), np.uint8)
    other = mien.Embedding(EMBEDDING.values, 9.5, mien.ModelIdentity("sface", 2, "f" * 16))
    faces = [
        mien.NewFace(subject, who, aligned=aligned)
        for who in ("ann", "bob")
        for subject, aligned in (
            *((b"1", False), (b"2", False), (b"1", True)),
            *((pixels, False), (pixels, True), (pixels[:56], False), (pixels + 1, False)),
            *((EMBEDDING, False), (other, False)),
        )
    ]
    keys = [face.request_key for face in enrol(*faces, content_keys=True).faces]
    assert len(set(keys)) == len(faces)
    assert all(len(key.encode()) <= 128 for key in keys)
    again = enrol(*reversed(faces), content_keys=True).faces
    assert [face.request_key for face in again] == keys[::-1]
    (own,) = enrol(mien.NewFace(b"1", "ann", request_key="mine"), content_keys=True).faces
    assert own.request_key == "mine"


def test_photo_has_the_key_that_it_had_before(tmp_path: Path) -> None:
    """Galleries that were filled by earlier versions know it."""
    (tmp_path / "1.jpg").write_bytes(b"a photo")
    (face,) = enrol(mien.NewFace(tmp_path / "1.jpg", "ann"), content_keys=True).faces
    assert face.request_key == "d29c13eece3ad9d2f99e807ac5f97726fab215d5"
