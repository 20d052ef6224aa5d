"""How stable an embedding is: portraits changed in many small ways, and ways to find and cut their faces.

The six sample portraits are scaled, pasted into larger photos, rotated, cropped, re-encoded, blurred and lit
otherwise, for one seed always in the same ways. Every way to place landmarks and to cut crops gets all of
these photos; RetinaFace and SFace in float32 do the rest, so that differences are the ways' own.

    python -m bench.embedding_stability [--each 10] [--seed 0]

Of a way it prints how alike the embeddings of one portrait are, how far those of two portraits spread, how
well people are told apart and what a crop takes of the processor; of landmarks, how far they move, also if
the detector computes in int8.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.backends import onnx, openvino
from mien_server.backends.checkpoint import load_network
from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.load.report import machine, table
from mien_server.models.detections import Detections, areas, suppress
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import DetectorRow, EmbedderRow
from mien_server.pipeline.align import CROP_SIDE, crop_faces, similarity
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.finding import (
    SHAKY_SIDE,
    TRUSTED_AREA,
    Letterbox,
    fine_side,
    letterbox,
    merge_passes,
)
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.write.graph import export
from mien_server.weights.write.quantise_graph import quantise_graph

ROOT = Path(__file__).parents[1]
FAMILIES = ("scaled", "pasted", "rotated", "cropped", "jpeg", "blurred", "light", "all at once")
SMALLEST = 60.0
"""Height in pixels below which no variant shrinks a face: smaller ones would decide all figures."""

Matrix = NDArray[np.float64]


class Variant(NamedTuple):
    """A portrait, changed.

    Attributes:
        portrait: index of the portrait.
        pixels: [h, w, 3] RGB uint8.
        matrix: [2, 3] from pixels of the portrait to pixels of this photo.
    """

    portrait: int
    family: str
    pixels: ImageU8
    matrix: Matrix


class Model:
    """A model of the repository, in float32 on the processor. A detector reports all candidates."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / "model_repository" / name
        config = read_config(self.folder / "config.pbtxt")
        assert isinstance(config, ModelConfig)
        self.config = config
        self.device = CpuDevice()
        options = config.options
        if hasattr(options, "nms_threshold"):
            options = dataclasses.replace(options, nms_threshold=1.0)
        self.instance = load_instance(
            dataclasses.replace(config, options=options),
            self.folder / "1",
            self.device,
            precision="fp32",
        )

    def answer(self, rows: Sequence[Any]) -> list[Any]:
        """One result for each row."""
        return answers(self.instance, self.device, rows)


def answers(instance: LoadedInstance, device: CpuDevice, rows: Sequence[Any]) -> list[Any]:
    """One result for each row, on one core."""
    device.begin(1)
    return instance.split(instance.compute(instance.collate(rows)), rows)


# --- The photos ---------------------------------------------------------------------------------------------


def transform(
    scale: float, degrees: float, centre: NDArray[np.float64], to: NDArray[np.float64]
) -> Matrix:
    """Turns and scales around `centre`, which then lies at `to`."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, to - turn @ centre])


def moved(portrait: ImageU8, matrix: Matrix, width: int, height: int, border: int) -> ImageU8:
    """Resamples at any sub-pixel place, smoothed before as a lens and a sensor of fewer pixels would."""
    scale = float(np.hypot(*matrix[:, 0]))
    if scale < 1:
        portrait = blurred(portrait, 0.5 * np.sqrt(1 / scale**2 - 1))
    grey = (128, 128, 128)
    photo = cv2.warpAffine(
        portrait,
        matrix,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=border,
        borderValue=grey,
    )
    return np.asarray(photo, np.uint8)


def blurred(photo: ImageU8, sigma: float) -> ImageU8:
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), max(sigma, 0.05)), np.uint8)


def encoded(photo: ImageU8, quality: int) -> ImageU8:
    _, data = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def variant(
    random: np.random.Generator, family: str, index: int, portrait: ImageU8, box: ArrayF32
) -> Variant:
    """One random change of a portrait whose face has the given box."""
    every = family == "all at once"
    height, width = portrait.shape[:2]
    low = min(1.0, max(0.35, SMALLEST / float(box[3] - box[1])))
    scale = random.uniform(low, 1) if every or family in ("scaled", "pasted") else 1.0
    degrees = random.uniform(-20, 20) if every or family == "rotated" else 0.0
    room = np.array([box[0], box[1], width - box[2], height - box[3]], np.float64).clip(0)
    kept = random.uniform(0.1, 1, 4) if every or family == "cropped" else np.ones(4)
    left, top, right, bottom = (room * (1 - kept)).round()
    inner = scale * np.array([width - left - right, height - top - bottom])
    size = np.ceil(inner)
    if family == "pasted" or (every and random.random() < 0.5):
        size = np.ceil(inner * random.uniform(1.1, 2.5, 2))
    # A photo that is as large as the portrait has no place but one, unless it was moved anyway.
    place = random.uniform(0, size - inner) if scale < 1 else np.zeros(2)
    middle = np.array([left, top]) + inner / scale / 2
    # Pixel i covers [i, i + 1]: what scales those edges moves centres by half a pixel less.
    matrix = transform(scale, degrees, middle - 0.5, place + inner / 2 - 0.5)
    border = cv2.BORDER_CONSTANT if (size > inner + 1).any() else cv2.BORDER_REPLICATE
    photo = moved(portrait, matrix, int(size[0]), int(size[1]), border)
    if every or family == "light":
        levels = (np.arange(256) / 255) ** random.uniform(0.7, 1.4) * random.uniform(0.6, 1.3)
        photo = (levels * 255).clip(0, 255).astype(np.uint8)[photo]
    if every or family == "blurred":
        photo = blurred(photo, random.uniform(0.003, 0.012) * scale * float(box[3] - box[1]))
    if every or family == "jpeg":
        photo = encoded(photo, int(random.integers(40, 96)))
    return Variant(index, family, np.ascontiguousarray(photo), matrix)


# --- Ways of finding the landmarks --------------------------------------------------------------------------

Fit = Callable[[ImageU8, int, tuple[int, int, int]], Letterbox]


def served(pixels: ImageU8, side: int, fill: tuple[int, int, int]) -> Letterbox:
    height, width = pixels.shape[:2]
    return letterbox(Photo(pixels, width, height), side, fill)


def by(interpolation: int) -> Fit:
    """A letterbox of one interpolation alone."""

    def fit(pixels: ImageU8, side: int, fill: tuple[int, int, int]) -> Letterbox:
        height, width = pixels.shape[:2]
        ratio = min(1.0, side / max(height, width))
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        canvas = np.full((side, side, 3), fill, np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=interpolation)
        return Letterbox(canvas, np.array([size[0] / width, size[1] / height], np.float32))

    return fit


class Finder:
    """Finds the largest face of a photo in several ways."""

    def __init__(self, detector: Model) -> None:
        self._detector = detector
        self.options = detector.config.options
        self.fill = detector.config.normalisation.fill_rgb

    def look(self, fitted: Letterbox, *, averaged: bool = False) -> Detections:
        """The faces of a canvas, in photo pixels.

        Args:
            averaged: a face's landmarks are the mean of all candidates that are taken for the same face,
                weighted by their scores, instead of those of the best.
        """
        row = DetectorRow(fitted.canvas, self.options.score_threshold)
        found: Detections = self._detector.answer([row])[0]
        threshold = self.options.nms_threshold
        faces = found.take(suppress(found.boxes, found.scores, threshold))
        if averaged and len(faces.boxes):
            weights = np.where(faces.iou(found) > threshold, found.scores, 0)
            mean = np.einsum("fc,cpd->fpd", weights, found.landmarks)
            mean /= weights.sum(axis=1)[:, None, None]
            faces = faces._replace(landmarks=mean.astype(np.float32))
        return fitted.to_photo(faces)

    def as_served(
        self, pixels: ImageU8, fit: Fit = served, *, averaged: bool = False
    ) -> Detections:
        """The largest face by the pipeline's rules: a coarse pass, and a finer one if need be."""
        coarse = fit(pixels, min(self.options.buckets), self.fill)
        faces = self.look(coarse, averaged=averaged)
        trusted = TRUSTED_AREA / float(np.prod(coarse.scale))
        fine = fine_side(self.options.buckets, max(pixels.shape[:2]))
        settled = areas(faces.boxes).max(initial=0.0) >= trusted
        if fine != min(self.options.buckets) and not settled:
            again = fit(pixels, fine, self.fill)
            faces = merge_passes(
                faces,
                self.look(again, averaged=averaged),
                trusted=trusted,
                shaky=SHAKY_SIDE / float(again.scale.min()),
                overlap=self.options.nms_threshold,
            )
        return largest(faces)

    def plainly(self, pixels: ImageU8) -> Detections:
        """One pass over a canvas of 640, bilinear: what a simple script does."""
        return largest(self.look(by(cv2.INTER_LINEAR)(pixels, 640, self.fill)))

    def again(self, pixels: ImageU8, face: Detections, side: int, length: float) -> Detections:
        """A face by a second look, on a canvas of its own, where it is of a length in pixels."""
        corners = face.boxes[0].reshape(2, 2).astype(np.float64)
        zoom = length / float((corners[1] - corners[0]).max())
        shift = side / 2 - zoom * corners.mean(axis=0)
        canvas = warp(pixels, np.column_stack([zoom * np.eye(2), shift]), side, self.fill)
        found = self.look(Letterbox(canvas, np.ones(2, np.float32)))
        back = Detections(
            ((found.boxes - np.tile(shift, 2)) / zoom).astype(np.float32),
            found.scores,
            ((found.landmarks - shift) / zoom).astype(np.float32),
        )
        return back.take(face.iou(back).argmax(axis=1)) if len(back.boxes) else face


def largest(faces: Detections) -> Detections:
    """That face alone, or none."""
    return faces.take(np.argsort(-areas(faces.boxes), kind="stable")[:1])


# --- Ways of cutting a crop ---------------------------------------------------------------------------------


Cut = Callable[[ImageU8, ArrayF32], ImageU8]


def halved(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """As served."""
    return crop_faces(pixels, landmarks[None])[0]


def sampled(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """Bilinear alone."""
    matrix = similarity(landmarks[None])[0]
    crop = cv2.warpAffine(pixels, matrix, (CROP_SIDE, CROP_SIDE), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def averaged_by_factor(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """Averages over squares of as many whole pixels as a pixel of the crop has, then bilinear."""
    matrix = similarity(landmarks[None])[0]
    return warp(pixels, matrix, CROP_SIDE, (0, 0, 0), whole=True)


def averaged_exactly(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """The photo to the scale of the crop by exact averages, then bilinear."""
    return warp(pixels, similarity(landmarks[None])[0], CROP_SIDE, (0, 0, 0))


def warp(
    pixels: ImageU8, matrix: Matrix, side: int, fill: tuple[int, int, int], *, whole: bool = False
) -> ImageU8:
    """A square out of a photo that is averaged to its scale before it is sampled.

    Args:
        matrix: [2, 3] from photo pixels to those of the square.
        whole: averages are over whole pixels, so the scale is only about that of the square.
    """
    scale = float(np.hypot(*matrix[:, 0]))
    if scale < 1:
        height, width = pixels.shape[:2]
        if whole:
            factor = int(1 / scale)
            height, width = height // factor * factor, width // factor * factor
            size = width // factor, height // factor
        else:
            size = max(1, round(width * scale)), max(1, round(height * scale))
        shrunk = cv2.resize(pixels[:height, :width], size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(shrunk, np.uint8)
        ratio = np.array([width / size[0], height / size[1]])
        shift = matrix[:, :2] @ ((ratio - 1) / 2) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * ratio, shift])
    square = cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=fill)
    return np.asarray(square, np.uint8)


class Way(NamedTuple):
    """Landmarks of one kind, cut in one way."""

    landmarks: str
    cut: Cut


SERVED, AVERAGED = "as served", "mean of candidates"
SECOND, SECOND_SMALL = "second look at 320", "second look at 160"
EXACT, PLAIN = "letterbox by exact averages", "640, bilinear"
WAYS = (
    Way(SERVED, sampled),
    Way(SERVED, halved),
    Way(SERVED, averaged_by_factor),
    Way(SERVED, averaged_exactly),
    Way(EXACT, sampled),
    Way(EXACT, halved),
    Way(SECOND, sampled),
    Way(SECOND, halved),
    Way(SECOND_SMALL, halved),
    Way(AVERAGED, sampled),
    Way(AVERAGED, halved),
    Way(PLAIN, sampled),
)


# --- What is said about them --------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--each", type=int, default=10, help="variants of a kind and portrait")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = sorted((ROOT / "samples").glob("*.jpg"))
    portraits = [np.asarray(cv2.imread(str(p), cv2.IMREAD_COLOR_RGB), np.uint8) for p in paths]
    people = [p.stem if p.stem.startswith("impostor") else p.stem[:-2] for p in paths]
    detector, embedder = Model("retinaface"), Model("sface")
    finder = Finder(detector)
    random = np.random.default_rng(options.seed)
    variants = [
        variant(random, family, index, portrait, finder.as_served(portrait).boxes[0])
        for index, portrait in enumerate(portraits)
        for family in FAMILIES
        for _ in range(options.each)
    ]
    kinds = [found_by_all(finder, each.pixels) for each in variants]
    seen = [all(len(face.boxes) for face in kind.values()) for kind in kinds]
    variants = [each for each, found in zip(variants, seen, strict=True) if found]
    landmarks = {
        name: np.stack([k[name].landmarks[0] for k, ok in zip(kinds, seen, strict=True) if ok])
        for name in kinds[0]
    }
    print(f"{machine()}\n{len(variants)} of {len(seen)} photos, seed {options.seed}\n")
    portrait = np.array([each.portrait for each in variants])
    family = np.array([each.family for each in variants])
    tell_ways(variants, landmarks, portrait, np.array(people)[portrait], family, embedder)
    tell_landmarks(variants, landmarks, portrait, family)
    tell_int8(detector, variants)


def found_by_all(finder: Finder, pixels: ImageU8) -> dict[str, Detections]:
    """The largest face by every way of finding it; each may be none."""
    face = finder.as_served(pixels)
    second = [
        finder.again(pixels, face, side, length) if len(face.boxes) else face
        for side, length in ((320, 128.0), (160, 100.0))
    ]
    return {
        SERVED: face,
        EXACT: finder.as_served(pixels, by(cv2.INTER_AREA)),
        SECOND: second[0],
        SECOND_SMALL: second[1],
        AVERAGED: finder.as_served(pixels, averaged=True),
        PLAIN: finder.plainly(pixels),
    }


def tell_ways(
    variants: list[Variant],
    landmarks: dict[str, ArrayF32],
    portrait: NDArray[np.int64],
    person: NDArray[np.str_],
    family: NDArray[np.str_],
    embedder: Model,
) -> None:
    """Prints how alike the embeddings of each way are."""
    pairs = np.triu(np.ones((len(variants), len(variants)), bool), 1)
    same = person[:, None] == person
    twins = portrait[:, None] == portrait
    lines, families = [], []
    for way in WAYS:
        began = time.process_time()
        crops = [
            way.cut(each.pixels, points)
            for each, points in zip(variants, landmarks[way.landmarks], strict=True)
        ]
        cost = 1000 * (time.process_time() - began) / len(crops)
        parts = [crops[start : start + 8] for start in range(0, len(crops), 8)]
        raw = np.concatenate(
            [embedder.answer([EmbedderRow(crop) for crop in part]) for part in parts]
        )
        vectors = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        cosines = vectors @ vectors.T
        centres = np.stack([vectors[portrait == p].sum(axis=0) for p in range(portrait.max() + 1)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        to_centre = (vectors * centres[portrait]).sum(axis=1)
        alike, genuine = cosines[pairs & twins], cosines[pairs & same]
        across, impostor = cosines[pairs & same & ~twins], cosines[pairs & ~same]
        spread = np.sqrt(
            np.mean(
                [
                    cosines[np.ix_(portrait == a, portrait == b)].var()
                    for a in range(portrait.max() + 1)
                    for b in range(a)
                ]
            )
        )
        name = [way.landmarks, way.cut.__name__.replace("_", " ")]
        lines.append(
            [
                *name,
                f"{to_centre.mean():.4f} / {np.percentile(to_centre, 5):.4f}",
                f"{alike.mean():.4f} / {np.percentile(alike, 5):.4f}",
                f"{across.mean():.3f}",
                f"{impostor.mean():.3f}",
                f"{spread:.4f}",
                f"{(across.mean() - impostor.mean()) / spread:.1f}",
                f"{separation(genuine, impostor):.2f}",
                f"{separation(across, impostor):.2f}",
                f"{cost:.2f}",
            ]
        )
        families.append([*name, *(f"{to_centre[family == f].mean():.4f}" for f in FAMILIES)])
    print(
        "Cosines (mean / 5th percentile). Spread: the standard deviation of one pair of portraits.\n"
    )
    header = [
        "landmarks",
        "crop",
        "to the centre",
        "same portrait",
        "same person",
        "others",
        "spread",
    ]
    print(table([*header, "gap / spread", "d'", "d' of two portraits", "CPU ms a crop"], lines))
    print("\nMean cosine to the portrait's centre\n")
    print(table(["landmarks", "crop", *FAMILIES], families))


def separation(genuine: ArrayF32, impostor: ArrayF32) -> float:
    """d': how many standard deviations lie between the means."""
    return float((genuine.mean() - impostor.mean()) / np.sqrt((genuine.var() + impostor.var()) / 2))


def tell_landmarks(
    variants: list[Variant],
    landmarks: dict[str, ArrayF32],
    portrait: NDArray[np.int64],
    family: NDArray[np.str_],
) -> None:
    """Prints how far landmarks are from where they are in the mean, on the portrait."""
    lines = []
    for name, points in landmarks.items():
        back = np.stack(
            [
                (face - each.matrix[:, 2]) @ np.linalg.inv(each.matrix[:, :2]).T
                for face, each in zip(points, variants, strict=True)
            ]
        )
        means = np.stack([back[portrait == p].mean(axis=0) for p in range(portrait.max() + 1)])
        eyes = np.linalg.norm(means[:, 0] - means[:, 1], axis=1)
        off = np.linalg.norm(back - means[portrait], axis=2).mean(axis=1) / eyes[portrait]
        shares = [off, *(off[family == f] for f in FAMILIES)]
        lines.append([name, *(f"{100 * share.mean():.2f}" for share in shares)])
    print("\nHow far landmarks move, in percent of the distance of the eyes\n")
    print(table(["landmarks", "all", *FAMILIES], lines))


def tell_int8(detector: Model, variants: list[Variant]) -> None:
    """Prints how far landmarks on the canvas of 320 move if the detector is quantised."""
    config, weights = (
        detector.config,
        detector.folder / "1" / detector.config.default_model_filename,
    )
    family = find_family(config.architecture)
    fill = config.normalisation.fill_rgb
    rows = [
        DetectorRow(served(each.pixels, 320, fill).canvas, config.options.score_threshold)
        for each in variants
    ]
    network = fold_batch_norms(load_network(family, weights))
    pixels = onnx.normalise(
        [row.image for row in rows[:: max(1, len(rows) // 64)]], config.normalisation
    )
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "int8.onnx"
        graph.write_bytes(quantise_graph(export(network, 320, 320, folded=True), pixels, 0))
        quantised = openvino.load(
            family,
            graph,
            normalisation=config.normalisation,
            options=config.options,
            precision="int8",
            device=detector.device,
            sides=(320,),
            max_batch_size=1,
        )
    shifts, lost = [], 0
    for row in rows:
        (candidates,) = detector.answer([row])
        ours = largest(
            candidates.take(
                suppress(candidates.boxes, candidates.scores, config.options.nms_threshold)
            )
        )
        (theirs,) = answers(quantised, detector.device, [row])
        if not len(ours.boxes):
            continue
        if ours.iou(theirs).max(initial=0.0) < 0.5:
            lost += 1
            continue
        other = theirs.take(ours.iou(theirs).argmax(axis=1))
        shifts.append(np.linalg.norm(ours.landmarks - other.landmarks, axis=2).ravel())
    moved_by = np.concatenate(shifts)
    print(
        f"\nDetector in int8, canvas of 320, {len(shifts)} faces and {lost} that are lost: landmarks move by"
        f" {np.median(moved_by):.2f} pixels in the median, {np.percentile(moved_by, 95):.2f} at the 95th"
        f" percentile, {moved_by.max():.2f} at most"
    )


if __name__ == "__main__":
    main()
