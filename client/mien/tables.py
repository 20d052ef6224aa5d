"""What the command line prints for a person: small aligned tables."""

from collections.abc import Container, Sequence

from mien.analysis import AnalyzeResult
from mien.enrol_results import FaceQuality
from mien.printable import printable
from mien.results import DetectResult, EmbedResult, Face, VerifyResult
from mien.timing import StageTiming


def detect_table(name: str, result: DetectResult) -> str:
    """The faces of one photo."""
    head = _headline(name, result.image_width, result.image_height, result.faces)
    rows = [[str(i), *located(face)] for i, face in enumerate(result.faces, 1)]
    return _paragraphs(
        head,
        aligned(["#", "score", "x1", "y1", "x2", "y2"], rows) if rows else "",
        f"detector  {result.detector}",
    )


def analyze_table(name: str, result: AnalyzeResult) -> str:
    """The faces of one photo, their quality, and what analysers say of them."""
    head = _headline(name, result.image_width, result.image_height, result.faces)
    asked = [analysis.model for analysis in result.faces[0].analyses] if result.faces else []
    rows = [
        [
            *(str(i), *located(each.face)),
            *("-" if value is None else f"{value:.2f}" for value in _figures(each.quality)),
            *map(str, each.analyses),
        ]
        for i, each in enumerate(result.faces, 1)
    ]
    figures = ["quality", "sharpness", "brightness", "yaw"]
    header = ["#", "score", "x1", "y1", "x2", "y2", *figures, *(model.name for model in asked)]
    return _paragraphs(
        head,
        aligned(header, rows) if rows else "",
        "\n".join(
            [
                *(f"analyser  {model}" for model in asked),
                *([f"detector  {result.detector}"] if result.detector else []),
            ]
        ),
    )


def _figures(quality: FaceQuality) -> list[float | None]:
    return [quality.overall, quality.sharpness, quality.brightness, quality.yaw]


def embed_table(name: str, result: EmbedResult) -> str:
    """The faces of one photo, each with the start of its embedding."""
    head = _headline(name, result.image_width, result.image_height, result.faces)
    rows = []
    for i, face in enumerate(result.faces, 1):
        if face.embedding is None:
            continue
        start = " ".join(f"{value:+.4f}" for value in face.embedding.values[:4])
        dimensions = str(len(face.embedding.values))
        rows.append(
            [str(i), *located(face), f"{face.embedding.norm:.3f}", dimensions, f"{start} ..."]
        )
    header = ["#", "score", "x1", "y1", "x2", "y2", "norm", "dims", "embedding"]
    return _paragraphs(
        head,
        aligned(header, rows, left={8}) if rows else "",
        f"embedder  {result.embedder}",
    )


def verify_table(result: VerifyResult) -> str:
    """The comparison of two faces."""
    verdict = "same person" if result.matched else "different"
    return "\n".join(
        (
            f"similarity  {result.similarity:.4f}",
            f"threshold   {result.threshold} ({result.threshold_source})",
            f"verdict     {verdict}",
            f"model       {result.embedder}",
        )
    )


def timing_table(timing: Sequence[StageTiming]) -> str:
    """The server's stages."""
    rows = [[stage.name, f"{stage.milliseconds:.2f}", str(stage.batch or "")] for stage in timing]
    return aligned(["stage", "ms", "batch"], rows, left={0})


def _headline(name: str, width: int, height: int, faces: Sequence[object]) -> str:
    count = {0: "no face", 1: "1 face"}.get(len(faces), f"{len(faces)} faces")
    return f"{printable(name)}  {width} x {height} pixels, {count}"


def located(face: Face) -> list[str]:
    """A face's score and the corners of its box, five cells; "-" where nothing has detected it."""
    if face.box is None:
        return ["-"] * 5
    corners = (face.box.x1, face.box.y1, face.box.x2, face.box.y2)
    return [f"{face.score:.3f}", *(f"{value:.1f}" for value in corners)]


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Container[int] = ()
) -> str:
    """Columns two spaces apart, set to the right but for those in `left`, as `printable` has them."""
    lines = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
