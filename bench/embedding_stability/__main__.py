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
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.embedding_stability.cutting import (
    AVERAGED,
    EXACT,
    PLAIN,
    SECOND,
    SECOND_SMALL,
    SERVED,
    WAYS,
)
from bench.embedding_stability.finding import Finder, by, largest, served
from bench.embedding_stability.networks import ROOT, Model, answers
from bench.embedding_stability.photos import FAMILIES, Variant, variant
from mien_server.backends import onnx, openvino
from mien_server.backends.checkpoint import load_network
from mien_server.load.report import machine, table
from mien_server.models.detections import Detections, suppress
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import DetectorRow, EmbedderRow
from mien_server.weights.write.export import export
from mien_server.weights.write.quantise_graph import quantise_graph


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
