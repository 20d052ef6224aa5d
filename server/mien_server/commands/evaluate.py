"""`mien-server evaluate`: how well models do on labelled photos."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien_server.commands.shared import (
    Commands,
    add_command,
    add_group,
    add_json,
    add_settings,
    json_text,
    say,
)
from mien_server.errors import OperatorError
from mien_server.settings import load_settings

if TYPE_CHECKING:
    from mien_server.evaluation.identification import OpenSetResult
    from mien_server.evaluation.loaded import LoadedModels
    from mien_server.evaluation.pairs import Pairs
    from mien_server.evaluation.persons import Persons
    from mien_server.evaluation.verification import Verification
    from mien_server.models.interface import AnyRole
    from mien_server.pipeline.types import ModelRef

_MOST_PAIRS = 0.0
"""Stands for the threshold with the most pairs right, where a false accept rate could be named."""


def add_to(commands: Commands) -> None:
    """Adds `evaluate` and its commands."""
    evaluate = add_group(commands, "evaluate", "measure models on labelled photos")
    for add in (_add_verification, _add_identification, _add_detection):
        add_settings(add(evaluate), "model_repository", "max_image_pixels", "cpu_cores")


def _add_verification(evaluate: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        evaluate,
        "verification",
        _verification,
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
        help="write the version's own thresholds.json, by which it is judged from then on: the threshold"
        " that keeps FAR, or without FAR the one with the most pairs right",
    )
    add_json(parser)
    return parser


def _add_identification(evaluate: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        evaluate,
        "identification",
        _identification,
        help="rank 1, FNIR at FPIR and thresholds by gallery size, on a folder of persons",
        description="Enrol the first photo of each person of a folder as a gallery would, look for the others"
        " and for strangers, and tell which threshold a gallery of which size needs.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a folder of photos for each person"
    )
    parser.add_argument(
        "--enrol", type=_count, default=1, metavar="N", help="photos of each to enrol [1]"
    )
    parser.add_argument(
        "--fpir",
        type=_far,
        default=0.01,
        metavar="RATE",
        help="of the thresholds by size: the share of strangers who may be taken for somebody [0.01]",
    )
    parser.add_argument(
        "--aligned", action="store_true", help="the pictures are crops of 112x112 already"
    )
    _add_model(parser, "embedder")
    _add_model(parser, "detector")
    parser.add_argument("--det", type=Path, metavar="PNG", help="draw FNIR over FPIR")
    add_json(parser)
    return parser


def _add_detection(evaluate: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        evaluate,
        "detection",
        _detection,
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
    add_json(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser, role: str) -> None:
    parser.add_argument(
        f"--{role}",
        type=_ref,
        metavar="NAME[:N]",
        help=f"and which version of it [the server's default {role}]",
    )


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
    from mien_server.evaluation.calibration import check_writable
    from mien_server.evaluation.loaded import load_models
    from mien_server.evaluation.pairs import read_pairs
    from mien_server.evaluation.reports import verification_document, verification_text
    from mien_server.evaluation.verification import verify_pairs
    from mien_server.models.roles import DETECTOR, EMBEDDER
    from mien_server.pipeline.types import ModelRef

    data = read_pairs(pairs, images, kind)
    crops = data.aligned if aligned is None else aligned
    wanted: dict[AnyRole, ModelRef] = {EMBEDDER: embedder or ModelRef(settings.default_embedder)}
    if not crops:
        wanted[DETECTOR] = detector or ModelRef(settings.default_detector)
    with load_models(settings, wanted) as running:
        folder = _version_folder(settings.model_repository, running)
        if calibrate is not None:
            check_writable(folder)
        found = verify_pairs(running, data, aligned=crops)
    try:
        if roc is not None:
            _draw(roc, running, data, found)
        if calibrate is not None:
            _calibrate(folder, running, data, found, calibrate)
    finally:  # what was measured is worth knowing even if something cannot be written
        say(
            json_text(verification_document(running, data, found))
            if as_json
            else verification_text(running, data, found)
        )
    return 0


def _identification(
    folder: Path,
    enrol: int,
    fpir: float,
    aligned: bool,
    embedder: "ModelRef | None",
    detector: "ModelRef | None",
    det: Path | None,
    as_json: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    if det is not None:
        _check_writable(det, "--det")
    from mien_server.evaluation.identification import identify_persons
    from mien_server.evaluation.identification_reports import (
        identification_document,
        identification_text,
    )
    from mien_server.evaluation.loaded import load_models
    from mien_server.evaluation.persons import read_persons
    from mien_server.models.roles import DETECTOR, EMBEDDER
    from mien_server.pipeline.types import ModelRef

    data = read_persons(folder)
    wanted: dict[AnyRole, ModelRef] = {EMBEDDER: embedder or ModelRef(settings.default_embedder)}
    if not aligned:
        wanted[DETECTOR] = detector or ModelRef(settings.default_detector)
    with load_models(settings, wanted) as running:
        found = identify_persons(running, data, aligned=aligned, enrolled=enrol, fpir=fpir)
    try:
        if det is not None:
            _draw_det(det, running, data, found)
    finally:
        say(
            json_text(identification_document(running, data, found))
            if as_json
            else identification_text(running, data, found)
        )
    return 0


def _draw_det(path: Path, running: "LoadedModels", data: "Persons", found: "OpenSetResult") -> None:
    from mien_server.evaluation.det_picture import det_picture
    from mien_server.evaluation.identification_reports import gallery_text
    from mien_server.evaluation.reports import verification_title

    if found.det is None:
        raise OperatorError("there is no DET: no person has a photo beside those that are enrolled")
    picture = det_picture(
        found.det,
        found.points,
        sure_from=3 / found.persons,
        title=verification_title(running),
        subtitle=gallery_text(data, found),
    )
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise OperatorError(f"the DET cannot be written: {error}") from error
    print(f"the DET is in {path}", file=sys.stderr)


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
    from mien_server.evaluation.loaded import load_models
    from mien_server.evaluation.reports import detection_document, detection_text
    from mien_server.evaluation.wider import read_wider
    from mien_server.models.roles import DETECTOR
    from mien_server.pipeline.types import ModelRef

    data = read_wider(labels, images, subsets)
    with load_models(
        settings, {DETECTOR: detector or ModelRef(settings.default_detector)}
    ) as running:
        found = detect_faces(running, data)
    say(
        json_text(detection_document(running, data, found))
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


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 on")
    return int(text)


def _far(text: str) -> float:
    try:
        far = float(text)
    except ValueError:
        far = math.nan
    if not 0 < far < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a rate between 0 and 1")
    return far


def _check_writable(path: Path, flag: str) -> None:
    """Finds out before the work whether its result can be written.

    Raises:
        OperatorError: it cannot.
    """
    if path.is_dir():
        problem = "is a folder"
    elif not path.parent.is_dir():
        problem = f"cannot be written: there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "may not be written"
    else:
        return
    raise OperatorError(f"{flag} {path} {problem}; name another file")


def _version_folder(repositories: Sequence[Path], running: "LoadedModels") -> Path:
    """Where the embedder's version is."""
    from mien_server.models.roles import EMBEDDER
    from mien_server.repository.folders import find_models

    model = running.models[EMBEDDER]
    return find_models(repositories)[model.name].path / str(model.version)


def _draw(path: Path, running: "LoadedModels", data: "Pairs", found: "Verification") -> None:
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
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise OperatorError(f"the ROC cannot be written: {error}") from error
    print(f"the ROC is in {path}", file=sys.stderr)


def _calibrate(
    folder: Path, running: "LoadedModels", data: "Pairs", found: "Verification", far: float
) -> None:
    from mien_server.evaluation.calibration import calibrate
    from mien_server.evaluation.metrics import PAIRS_TO_BE_BEST, operation
    from mien_server.models.roles import EMBEDDER

    threshold, rule = found.best.threshold, "most pairs right"
    if far == _MOST_PAIRS:
        if min(found.genuine, found.impostor) < PAIRS_TO_BE_BEST:
            raise OperatorError(
                f"not calibrated: the threshold with the most pairs right needs {PAIRS_TO_BE_BEST} pairs"
                f" of one person and as many of two, not {found.genuine:,} and {found.impostor:,};"
                " --calibrate FAR needs 3/FAR of two"
            )
    else:
        kept = operation(found.similarity, found.same, far)
        if kept.threshold is None:
            raise OperatorError(
                f"not calibrated: FAR {far:g} needs {kept.needed:,} pairs of two people, not"
                f" {found.impostor:,}"
            )
        threshold, rule = kept.threshold, f"FAR {far:g}"
    model = running.models[EMBEDDER]
    written = calibrate(
        folder,
        model,
        threshold,
        found.operations,
        rule=rule,
        data=data.source,
        genuine=found.genuine,
        impostor=found.impostor,
    )
    print(f"{model.name} version {model.version} is calibrated: {written}", file=sys.stderr)
