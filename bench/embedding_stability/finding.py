"""Ways of finding the landmarks of a photo's largest face."""

from collections.abc import Callable

import cv2
import numpy as np

from bench.embedding_stability.cutting import warp
from bench.embedding_stability.networks import Model
from mien_server.models.detections import Detections, areas, suppress
from mien_server.models.interface import ImageU8
from mien_server.models.roles import DetectorRow
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.finding import (
    SHAKY_SIDE,
    TRUSTED_AREA,
    Letterbox,
    fine_side,
    letterbox,
    merge_passes,
)

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
