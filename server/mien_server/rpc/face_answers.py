"""What the pipeline answers, as the messages of mien.v1."""

from dataclasses import asdict, replace

from mien.v1 import face_pb2
from mien_server.pipeline.quality import overall
from mien_server.pipeline.types import (
    Analysis,
    Comparison,
    Embedding,
    Face,
    ModelIdentity,
    PhotoFaces,
    Quality,
)


def detect_response(found: PhotoFaces) -> face_pb2.DetectResponse:
    """The answer of Detect."""
    return face_pb2.DetectResponse(
        faces=[face_message(face, (found.width, found.height)) for face in found.faces],
        detector=optional_identity(found.detector),
        image_width=found.width,
        image_height=found.height,
    )


def embed_response(found: PhotoFaces) -> face_pb2.EmbedResponse:
    """The answer of Embed."""
    return face_pb2.EmbedResponse(
        faces=[face_message(face, (found.width, found.height)) for face in found.faces],
        detector=optional_identity(found.detector),
        embedder=optional_identity(found.embedder),
        image_width=found.width,
        image_height=found.height,
    )


def verify_response(compared: Comparison) -> face_pb2.VerifyResponse:
    """The answer of Verify."""
    return face_pb2.VerifyResponse(
        similarity=compared.similarity,
        threshold=compared.threshold,
        threshold_source=(
            face_pb2.THRESHOLD_SOURCE_REQUEST
            if compared.threshold_from_request
            else face_pb2.THRESHOLD_SOURCE_MODEL
        ),
        matched=compared.matched,
        face_a=face_message(compared.face_a, compared.size_a),
        face_b=face_message(compared.face_b, compared.size_b),
        detector=optional_identity(compared.detector),
        embedder=identity_message(compared.embedder),
    )


def face_message(face: Face, size: tuple[int, int] | None) -> face_pb2.Face:
    """A face, of an upright photo of this width and height; None for a crop or an embedding."""
    message = face_pb2.Face(score=face.score)
    if face.box is not None:
        x1, y1, x2, y2 = face.box.tolist()
        message.box.CopyFrom(face_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))
        if size is not None:
            w, h = size
            message.box_normalized.CopyFrom(
                face_pb2.Box(x1=x1 / w, y1=y1 / h, x2=x2 / w, y2=y2 / h)
            )
    if face.landmarks is not None:
        points = [face_pb2.Point(x=x, y=y) for x, y in face.landmarks.tolist()]
        left_eye, right_eye, nose, left_mouth, right_mouth = points
        message.landmarks.CopyFrom(
            face_pb2.Landmarks(
                left_eye=left_eye,
                right_eye=right_eye,
                nose=nose,
                left_mouth=left_mouth,
                right_mouth=right_mouth,
            )
        )
    if face.embedding is not None:
        message.embedding.CopyFrom(embedding_message(face.embedding))
    message.analyses.extend(map(_analysis, face.analyses))
    return message


def embedding_message(embedding: Embedding) -> face_pb2.Embedding:
    """A face as a vector."""
    return face_pb2.Embedding(
        values=embedding.values.tolist(),
        norm=embedding.norm,
        model=identity_message(embedding.model),
    )


def identity_message(model: ModelIdentity) -> face_pb2.ModelIdentity:
    """Which model answered."""
    return face_pb2.ModelIdentity(
        name=model.name, version=model.version, fingerprint=model.fingerprint
    )


def optional_identity(model: ModelIdentity | None) -> face_pb2.ModelIdentity | None:
    """Which model answered, if any did."""
    return None if model is None else identity_message(model)


def analyze_response(found: PhotoFaces) -> face_pb2.AnalyzeResponse:
    """The answer of Analyze."""
    size = (found.width, found.height)
    return face_pb2.AnalyzeResponse(
        faces=[
            face_pb2.AnalyzedFace(
                face=face_message(replace(face, analyses=()), size),
                quality=quality_message(face.quality),
                analyses=[_analysis(analysis) for analysis in face.analyses],
            )
            for face in found.faces
        ],
        detector=optional_identity(found.detector),
        embedder=optional_identity(found.embedder),
        image_width=found.width,
        image_height=found.height,
    )


def quality_message(quality: Quality | None) -> face_pb2.FaceQuality | None:
    """A face's figures, if they were asked for."""
    if quality is None:
        return None
    return face_pb2.FaceQuality(overall=overall(quality), **asdict(quality))


def _analysis(analysis: Analysis) -> face_pb2.Analysis:
    message = face_pb2.Analysis(model=identity_message(analysis.model))
    values = analysis.values.tolist()
    match analysis.kind:
        case "classification":
            ranked = sorted(zip(analysis.labels, values, strict=True), key=lambda each: -each[1])
            message.classification.labels.extend(
                face_pb2.LabelProbability(label=label, probability=value) for label, value in ranked
            )
        case "score":
            (message.score,) = values
        case "number":
            message.number.CopyFrom(face_pb2.Number(value=values[0], unit=analysis.unit))
        case "points":
            message.points.points.extend(face_pb2.Point(x=x, y=y) for x, y in values)
    return message
