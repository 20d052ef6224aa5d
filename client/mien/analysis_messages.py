"""To and from the messages of Analyze: what the two clients share."""

from collections.abc import Sequence

from mien.analysis import AnalyzedFace, AnalyzeResult
from mien.gallery_messages import quality_from
from mien.images import ImageLike, image_message
from mien.messages import (
    ModelLike,
    PolicyLike,
    Requirement,
    analysis_result,
    face_result,
    fitting,
    identity,
    model_ref,
    model_refs,
    requirements_message,
    selection_message,
)
from mien.timing import StageTiming
from mien.v1 import face_pb2 as pb


def analyze_request(
    image: ImageLike,
    *,
    analysers: Sequence[ModelLike],
    aligned: bool,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    max_faces: int | None,
    detector: ModelLike | None,
    embed: bool,
    embedder: ModelLike | None,
    require: Sequence[Requirement],
    require_quality: bool | float,
) -> pb.AnalyzeRequest:
    """The request of `analyze`.

    Raises:
        InvalidRequest, OSError, TypeError: as `detect` says; also analysers that are no list.
    """
    return fitting(
        pb.AnalyzeRequest(
            image=image_message(image, aligned=aligned),
            detector=model_ref(detector, "detector"),
            analysers=model_refs(analysers, "analysers"),
            selection=selection_message(policy, min_score, min_face_size, max_faces),
            require=requirements_message(require, require_quality),
            embedder=model_ref(embedder, "embedder") or (pb.ModelRef() if embed else None),
        )
    )


def analyze_result(response: pb.AnalyzeResponse, timing: tuple[StageTiming, ...]) -> AnalyzeResult:
    """The answer of `analyze`."""
    return AnalyzeResult(
        faces=tuple(
            AnalyzedFace(
                face_result(each.face),
                quality_from(each.quality),
                tuple(map(analysis_result, each.analyses)),
            )
            for each in response.faces
        ),
        detector=identity(response.detector) if response.HasField("detector") else None,
        image_width=response.image_width,
        image_height=response.image_height,
        timing=timing,
        embedder=identity(response.embedder) if response.HasField("embedder") else None,
    )
