"""`mien-server models check` and `mien-server evaluate`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien_server.commands.models import CommandFailed, say
from mien_server.settings import load_settings

if TYPE_CHECKING:
    from mien_server.evaluation.engine import Engine
    from mien_server.evaluation.pairs import Pairs
    from mien_server.evaluation.verification import Verification
    from mien_server.models.interface import AnyRole
    from mien_server.pipeline.types import ModelRef

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
"""Those of `backends.precision`, which takes seconds to import."""

_MOST_PAIRS = 0.0
"""Stands for the threshold with the most pairs right, where a false accept rate could be named."""


def add_check(models: Any) -> argparse.ArgumentParser:
    """Adds `models check`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = models.add_parser(
        "check",
        help="is a version what it should be, and how fast is it",
        description="Run a version against its golden file: cosine to fp32, speed by batch size, memory."
        " The exit status is 1 if the cosine is below its bound.",
    )
    parser.add_argument("name", metavar="NAME", help="of the model")
    parser.add_argument(
        "--version", type=int, metavar="N", help="[the highest that version_policy asks for]"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda:0, … [the configured one]")
    parser.add_argument("--precision", choices=PRECISIONS, help="[the configured one]")
    parser.add_argument(
        "--make-golden",
        action="store_true",
        help="first write the golden file, anew if there is one",
    )
    _add_json(parser)
    parser.set_defaults(command=_check)
    return parser


def add_verification(evaluate: Any) -> argparse.ArgumentParser:
    """Adds `evaluate verification`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = evaluate.add_parser(
        "verification",
        help="accuracy and TAR at FAR on labelled pairs",
        description="Embed the pictures of labelled pairs as a server would, and see how well their"
        " similarities tell people apart.",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        required=True,
        metavar="FILE",
        help="LFW's pairs.txt, InsightFace's .bin, or CSV of path,path,label",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="of the pictures [that of FILE]")
    parser.add_argument(
        "--format",
        dest="kind",
        choices=("lfw", "bin", "csv"),
        help="of FILE [told from its suffix]",
    )
    parser.add_argument(
        "--aligned",
        action=argparse.BooleanOptionalAction,
        help="whether the pictures are crops of 112x112 [only those of a .bin]",
    )
    _add_model(parser, "embedder")
    _add_model(parser, "detector")
    parser.add_argument("--roc", type=Path, metavar="PNG", help="draw the ROC")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        type=_far,
        const=_MOST_PAIRS,
        metavar="FAR",
        help="write match_threshold and thresholds_by_far into the embedder's config.pbtxt: the threshold"
        " that keeps FAR, or without FAR the one with the most pairs right",
    )
    _add_json(parser)
    parser.set_defaults(command=_verification)
    return parser


def add_detection(evaluate: Any) -> argparse.ArgumentParser:
    """Adds `evaluate detection`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = evaluate.add_parser(
        "detection",
        help="average precision on WIDER FACE",
        description="Find the faces of labelled photos as a server would, and compute the average precision"
        " on WIDER FACE's subsets easy, medium and hard.",
    )
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="FILE", help="wider_face_val_bbx_gt.txt"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="WIDER_val/images"
    )
    parser.add_argument(
        "--subsets",
        type=Path,
        metavar="PATH",
        help="the folder of wider_{easy,medium,hard}_val.mat (needs SciPy), or a JSON file of the same"
        " [by the faces' heights, which is not official]",
    )
    _add_model(parser, "detector")
    _add_json(parser)
    parser.set_defaults(command=_detection)
    return parser


def _add_model(parser: argparse.ArgumentParser, role: str) -> None:
    parser.add_argument(
        f"--{role}",
        type=_ref,
        metavar="NAME[:N]",
        help=f"and which version of it [the server's default {role}]",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def _check(
    name: str,
    version: int | None,
    device: str | None,
    precision: Any,
    make_golden: bool,
    as_json: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    from mien_server.evaluation.check import check_version, find_target
    from mien_server.evaluation.engine import EvaluationError
    from mien_server.evaluation.reports import check_document, check_text
    from mien_server.repository.config.pbtxt import ConfigError
    from mien_server.weights.progress import Progress
    from mien_server.weights.recognise.onnx_weights import WeightsError
    from mien_server.weights.write.golden import renew_golden

    try:
        target = find_target(settings.model_repository, name, version)
        if make_golden:
            weights = target.config.default_model_filename
            renew_golden(target.repository, target.folder, weights, Progress())
            target = find_target(settings.model_repository, name, target.version)
        check = check_version(
            target, device=device, precision=precision, cores=settings.cpu_cores or None
        )
    except (EvaluationError, WeightsError, ConfigError, OSError) as error:
        raise CommandFailed(str(error)) from error
    say(_json(check_document(check)) if as_json else check_text(check))
    return 0 if check.passed else 1


def _verification(
    pairs: Path,
    images: Path | None,
    kind: Any,
    aligned: bool | None,
    embedder: "ModelRef | None",
    detector: "ModelRef | None",
    roc: Path | None,
    calibrate: float | None,
    as_json: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    if roc is not None:
        _check_writable(roc, "--roc")
    from mien_server.evaluation.calibration import check_editable
    from mien_server.evaluation.engine import EvaluationError, engine
    from mien_server.evaluation.pairs import DatasetError, read_pairs
    from mien_server.evaluation.reports import verification_document, verification_text
    from mien_server.evaluation.verification import verify_pairs
    from mien_server.models.roles import DETECTOR, EMBEDDER
    from mien_server.pipeline.types import ModelRef

    try:
        data = read_pairs(pairs, images, kind)
        crops = data.aligned if aligned is None else aligned
        wanted: dict[AnyRole, ModelRef] = {
            EMBEDDER: embedder or ModelRef(settings.default_embedder)
        }
        if not crops:
            wanted[DETECTOR] = detector or ModelRef(settings.default_detector)
        with engine(settings, wanted) as running:
            config = _config(settings.model_repository, running)
            if calibrate is not None:
                check_editable(config)
            found = verify_pairs(running, data, aligned=crops)
    except (EvaluationError, DatasetError, OSError) as error:
        raise CommandFailed(str(error)) from error
    try:
        if roc is not None:
            _draw(roc, running, data, found)
        if calibrate is not None:
            _calibrate(config, running, data, found, calibrate)
    except (EvaluationError, OSError) as error:
        raise CommandFailed(str(error)) from error
    finally:
        say(
            _json(verification_document(running, data, found))
            if as_json
            else verification_text(running, data, found)
        )
    return 0


def _detection(
    labels: Path,
    images: Path,
    subsets: Path | None,
    detector: "ModelRef | None",
    as_json: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    from mien_server.evaluation.detection import detect_faces
    from mien_server.evaluation.engine import EvaluationError, engine
    from mien_server.evaluation.pairs import DatasetError
    from mien_server.evaluation.reports import detection_document, detection_text
    from mien_server.evaluation.wider import read_wider
    from mien_server.models.roles import DETECTOR
    from mien_server.pipeline.types import ModelRef

    try:
        data = read_wider(labels, images, subsets)
        with engine(
            settings, {DETECTOR: detector or ModelRef(settings.default_detector)}
        ) as running:
            found = detect_faces(running, data)
    except (EvaluationError, DatasetError, OSError) as error:
        raise CommandFailed(str(error)) from error
    say(
        _json(detection_document(running, data, found))
        if as_json
        else detection_text(running, data, found)
    )
    return 0


def _ref(text: str) -> "ModelRef":
    from mien_server.pipeline.types import ModelRef

    name, _, version = text.partition(":")
    if version and not (version.isdecimal() and int(version)):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a model's name, or NAME:N for its version N"
        )
    return ModelRef(name, int(version or 0))


def _far(text: str) -> float:
    try:
        far = float(text)
    except ValueError:
        far = math.nan
    if not 0 < far < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a false accept rate between 0 and 1")
    return far


def _check_writable(path: Path, flag: str) -> None:
    """Finds out before the work whether its result can be written."""
    if path.is_dir():
        problem = "is a folder"
    elif not path.parent.is_dir():
        problem = f"cannot be written: there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "may not be written"
    else:
        return
    raise CommandFailed(f"{flag} {path} {problem}; name another file")


def _config(repositories: Sequence[Path], running: "Engine") -> Path:
    """The embedder's config.pbtxt."""
    from mien_server.models.roles import EMBEDDER
    from mien_server.repository.folders import CONFIG, find_models

    return find_models(repositories)[running.models[EMBEDDER].name].path / CONFIG


def _draw(path: Path, running: "Engine", data: "Pairs", found: "Verification") -> None:
    from mien_server.evaluation.metrics import lowest_far
    from mien_server.evaluation.reports import accuracy_text, pairs_text, verification_title
    from mien_server.evaluation.roc_picture import roc_picture

    picture = roc_picture(
        found.roc,
        found.operations,
        sure_from=lowest_far(found.impostor),
        title=verification_title(running),
        subtitle=f"pairs: {pairs_text(data, found)}; accuracy {accuracy_text(found.accuracy)}",
    )
    picture.save(path, format="PNG")
    print(f"the ROC is in {path}", file=sys.stderr)


def _calibrate(
    config: Path, running: "Engine", data: "Pairs", found: "Verification", far: float
) -> None:
    from mien_server.evaluation.calibration import calibrate
    from mien_server.evaluation.engine import EvaluationError
    from mien_server.evaluation.metrics import PAIRS_TO_BE_BEST, operation
    from mien_server.models.roles import EMBEDDER

    threshold, rule = found.best.threshold, "most pairs right"
    if far == _MOST_PAIRS:
        if min(found.genuine, found.impostor) < PAIRS_TO_BE_BEST:
            raise EvaluationError(
                f"not calibrated: the threshold with the most pairs right needs {PAIRS_TO_BE_BEST} pairs"
                f" of one person and as many of two, not {found.genuine:,} and {found.impostor:,};"
                " --calibrate FAR needs 3/FAR of two"
            )
    else:
        kept = operation(found.similarity, found.same, far)
        if kept.threshold is None:
            raise EvaluationError(
                f"not calibrated: FAR {far:g} needs {kept.needed:,} pairs of two people, not"
                f" {found.impostor:,}"
            )
        threshold, rule = kept.threshold, f"FAR {far:g}"
    model = running.models[EMBEDDER]
    note = (
        f"with version {model.version} on {found.genuine:,} + {found.impostor:,} pairs of"
        f" {data.source}: {rule}"
    )
    calibrate(config, threshold, found.operations, note)
    print(f"{config} is calibrated", file=sys.stderr)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2)
