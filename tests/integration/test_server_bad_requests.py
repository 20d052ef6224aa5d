"""Bad options, models and embeddings of every kind, over the wire: answered as documented."""

import io
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from PIL import Image

from mien.v1 import face_pb2, face_pb2_grpc

Code = grpc.StatusCode
INVALID, UNMET = Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION
Refused = Callable[..., None]
Request = face_pb2.DetectRequest | face_pb2.EmbedRequest | face_pb2.VerifyRequest
CROP = face_pb2.AlignedFace(pixels=face_pb2.Pixels(height=112, width=112, data=bytes(37632)))


def encoded(photo: bytes) -> face_pb2.Image:
    return face_pb2.Image(encoded=photo)


def selecting(**options: Any) -> Callable[[bytes], Request]:
    selection = face_pb2.FaceSelection(**options)
    return lambda photo: face_pb2.EmbedRequest(image=encoded(photo), selection=selection)


def detecting_with(name: str = "", version: int = 0) -> Callable[[bytes], Request]:
    model = face_pb2.ModelRef(name=name, version=version)
    return lambda photo: face_pb2.DetectRequest(image=encoded(photo), detector=model)


def embedding_with(name: str) -> Callable[[bytes], Request]:
    model = face_pb2.ModelRef(name=name)
    return lambda photo: face_pb2.EmbedRequest(image=encoded(photo), embedder=model)


def verifying(**options: Any) -> Callable[[bytes], Request]:
    def request(photo: bytes) -> Request:
        side = face_pb2.Subject(image=encoded(photo))
        return face_pb2.VerifyRequest(a=side, b=side, **options)

    return request


def with_policy_of_another_contract(photo: bytes) -> Request:
    good = face_pb2.EmbedRequest(image=encoded(photo)).SerializeToString()
    return face_pb2.EmbedRequest.FromString(good + b"\x22\x02\x08\x63")


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def without_a_face(_photo: bytes) -> Request:
    return face_pb2.EmbedRequest(image=encoded(jpeg(Image.new("RGB", (300, 200), "green"))))


def with_two_faces(photo: bytes) -> Request:
    one = Image.open(io.BytesIO(photo)).convert("RGB")
    both = Image.new("RGB", (2 * one.width, one.height))
    both.paste(one, (0, 0))
    both.paste(one, (one.width, 0))
    selection = face_pb2.FaceSelection(policy=face_pb2.FACE_POLICY_REQUIRE_ONE)
    return face_pb2.EmbedRequest(image=encoded(jpeg(both)), selection=selection)


CASES: dict[str, tuple[Callable[[bytes], Request], Code, str, str]] = {
    "no image": (lambda _: face_pb2.DetectRequest(), INVALID, "INVALID_REQUEST", "image"),
    "image without a source": (
        lambda _: face_pb2.DetectRequest(image=face_pb2.Image()),
        INVALID,
        "INVALID_REQUEST",
        "image",
    ),
    "aligned face without a crop": (
        lambda _: face_pb2.EmbedRequest(image=face_pb2.Image(aligned_face=face_pb2.AlignedFace())),
        INVALID,
        "INVALID_REQUEST",
        "image.aligned_face",
    ),
    "aligned face in Detect": (
        lambda _: face_pb2.DetectRequest(image=face_pb2.Image(aligned_face=CROP)),
        INVALID,
        "INVALID_OPTION",
        "image.aligned_face",
    ),
    "Verify of nothing": (lambda _: face_pb2.VerifyRequest(), INVALID, "INVALID_REQUEST", "a"),
    "Verify with an empty side": (
        lambda photo: face_pb2.VerifyRequest(
            a=face_pb2.Subject(image=encoded(photo)), b=face_pb2.Subject()
        ),
        INVALID,
        "INVALID_REQUEST",
        "b",
    ),
    **{
        f"min_score {value}": (
            selecting(min_score=value),
            INVALID,
            "INVALID_OPTION",
            "selection.min_score",
        )
        for value in (math.nan, math.inf, -0.5, 0.0, 1.5)
    },
    **{
        f"min_face_size {value}": (
            selecting(min_face_size=value),
            INVALID,
            "INVALID_OPTION",
            "selection.min_face_size",
        )
        for value in (math.nan, math.inf, -1.0)
    },
    **{
        f"max_faces {value}": (
            selecting(max_faces=value, policy=face_pb2.FACE_POLICY_ALL),
            INVALID,
            "INVALID_OPTION",
            "selection.max_faces",
        )
        for value in (0, 1001, 2**32 - 1)
    },
    "policy of another contract": (
        with_policy_of_another_contract,
        INVALID,
        "INVALID_OPTION",
        "selection.policy",
    ),
    "all faces in Verify": (
        verifying(selection=face_pb2.FaceSelection(policy=face_pb2.FACE_POLICY_ALL)),
        INVALID,
        "INVALID_OPTION",
        "selection.policy",
    ),
    **{
        f"threshold {value}": (verifying(threshold=value), INVALID, "INVALID_OPTION", "threshold")
        for value in (math.nan, math.inf, -1.5, 2.0)
    },
    "unknown detector": (
        detecting_with("nobody"),
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "detector",
    ),
    "path for a model": (
        detecting_with("../retinaface"),
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "detector",
    ),
    "model name of a megabyte": (
        detecting_with("x" * 1024 * 1024),
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "detector",
    ),
    "unknown version": (
        detecting_with("retinaface", 99),
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "detector",
    ),
    "negative version": (
        detecting_with(version=-1),
        INVALID,
        "INVALID_OPTION",
        "detector.version",
    ),
    "an embedder as detector": (detecting_with("sface"), INVALID, "INVALID_OPTION", "detector"),
    "a detector as embedder": (
        embedding_with("retinaface"),
        INVALID,
        "INVALID_OPTION",
        "embedder",
    ),
    "a model without weights": (
        embedding_with("arcface"),
        Code.UNAVAILABLE,
        "MODEL_NOT_READY",
        "embedder",
    ),
    "no face": (without_a_face, UNMET, "FACE_NOT_FOUND", "image.encoded"),
    "faces smaller than wanted": (
        selecting(min_face_size=5000.0),
        UNMET,
        "FACE_TOO_SMALL",
        "image.encoded",
    ),
    "two faces where one is required": (
        with_two_faces,
        UNMET,
        "MULTIPLE_FACES",
        "image.encoded",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_request_is_refused(name: str, refused: Refused, photo: bytes) -> None:
    request, code, reason, field = CASES[name]
    refused(request(photo), code, reason, field)


@pytest.fixture(scope="module")
def embedding(stub: face_pb2_grpc.FaceServiceStub, photo: bytes) -> face_pb2.Embedding:
    answer = stub.Embed(face_pb2.EmbedRequest(image=encoded(photo)), timeout=60)
    return answer.faces[0].embedding


def against(photo: bytes, embedding: face_pb2.Embedding) -> face_pb2.VerifyRequest:
    return face_pb2.VerifyRequest(
        a=face_pb2.Subject(image=encoded(photo)), b=face_pb2.Subject(embedding=embedding)
    )


@pytest.mark.parametrize(
    "values",
    [
        pytest.param((), id="none"),
        pytest.param((math.nan,) * 128, id="NaN"),
        pytest.param((math.inf, *(0.0,) * 127), id="infinity"),
        pytest.param((0.0,) * 128, id="zeros"),
        pytest.param((1.0, *(0.0,) * 126), id="another length"),
        pytest.param((1.0,) * 128, id="not of unit length"),
    ],
)
def test_bad_values_of_an_embedding_are_refused(
    values: tuple[float, ...], refused: Refused, photo: bytes, embedding: face_pb2.Embedding
) -> None:
    bad = face_pb2.Embedding(values=values, norm=1, model=embedding.model)
    refused(against(photo, bad), INVALID, "INVALID_EMBEDDING", "b.embedding.values")


def test_embedding_without_its_model_is_refused(
    refused: Refused, photo: bytes, embedding: face_pb2.Embedding
) -> None:
    bad = face_pb2.Embedding(values=embedding.values, norm=1)
    refused(against(photo, bad), INVALID, "INVALID_EMBEDDING", "b.embedding.model")


def test_embedding_of_another_fingerprint_is_refused(
    refused: Refused, photo: bytes, embedding: face_pb2.Embedding
) -> None:
    model = face_pb2.ModelIdentity(name="sface", version=1, fingerprint="0" * 16)
    bad = face_pb2.Embedding(values=embedding.values, norm=1, model=model)
    refused(against(photo, bad), UNMET, "EMBEDDING_MISMATCH", "b.embedding.model")


def test_bytes_that_are_no_message_are_refused(
    server_address: str, stub: face_pb2_grpc.FaceServiceStub, photo: bytes
) -> None:
    with grpc.insecure_channel(server_address) as channel:
        method: Any = channel.unary_unary("/mien.v1.FaceService/Detect")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"\xff" * 99, timeout=60)
    assert caught.value.code() is INVALID
    assert stub.Detect(face_pb2.DetectRequest(image=encoded(photo)), timeout=60).faces
