"""RetinaFace: one pass over a photo gives face boxes, scores and five landmarks.

Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild", arXiv:1905.00641.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import AnyFamily, ArrayF32
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

STEPS = (8, 16, 32)
"""Pixels between the cells of each map."""
SIZES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the priors of each map's cells."""
ANCHORS_PER_CELL = 2
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


@lru_cache(maxsize=16)
def priors(side: int) -> ArrayF32:
    """The prior boxes of a square canvas, in the order of the network's outputs.

    They are squares, so [P, 3] float32 says it all: centre x, centre y and side, in canvas pixels.
    Order: map, row, column, size. P is 16,800 for a side of 640. Read-only, since it is shared.
    """
    maps = []
    for step, sizes in zip(STEPS, SIZES, strict=True):
        centres = (np.arange(-(-side // step), dtype=np.float32) + 0.5) * step
        y, x, size = np.meshgrid(centres, centres, np.array(sizes, np.float32), indexing="ij")
        maps.append(np.stack([x, y, size], axis=-1).reshape(-1, 3))
    boxes = np.concatenate(maps)
    boxes.setflags(write=False)
    return boxes


def decode(
    loc: ArrayF32,
    scores: ArrayF32,
    landmarks: ArrayF32,
    *,
    side: int,
    min_scores: Sequence[float],
    nms_threshold: float,
) -> list[Detections]:
    """The faces of each photo of a batch.

    Formulas: the SSD box coding with variances 0.1 and 0.2 (Liu et al., arXiv:1512.02325, section 2.2);
    landmarks are coded as centres are. Only priors that beat their photo's score are decoded, those of
    all photos at once. What is not finite is no face.

    Args:
        loc: [N, P, 4], offsets of centre and size.
        scores: [N, P], the face's probability.
        landmarks: [N, P, 10], offsets of five points.
        side: of the square canvas, in pixels.
        min_scores: for each photo, the score to beat.
        nms_threshold: boxes that overlap a better one by more than this IoU are dropped.

    Raises:
        ValueError: P is not the number of priors of the canvas.
    """
    anchors = priors(side)
    if loc.shape[1] != len(anchors):
        raise ValueError(
            f"the outputs speak of {loc.shape[1]} priors, a canvas of {side} pixels has {len(anchors)}"
        )
    row, prior = candidates(scores, min_scores)
    centre, size = anchors[prior, :2], anchors[prior, 2:]
    offsets = loc[row, prior]
    with np.errstate(over="ignore", invalid="ignore"):
        middle = centre + offsets[:, :2] * CENTRE_VARIANCE * size
        half = size * np.exp(offsets[:, 2:] * SIZE_VARIANCE) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        points = landmarks[row, prior].reshape(-1, 5, 2)
        points = centre[:, None] + points * CENTRE_VARIANCE * size[:, None]
    return detections(
        row, boxes, scores[row, prior], points, photos=len(loc), nms_threshold=nms_threshold
    )


if TYPE_CHECKING:
    from mien_server.models.networks.retinaface import RetinaFace


class RetinaFaceFamily:
    """RetinaFace with one backbone: `interface.Family` of detectors."""

    role = DETECTOR

    def __init__(self, name: str, build: Callable[[], "RetinaFace"]) -> None:
        self.name = name
        self._build = build

    def network(self) -> "RetinaFace":
        """A new network with random weights, in eval mode."""
        return self._build().eval()

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        """loc, conf and landmarks, by what they hold for each prior.

        Raises:
            ValueError: the outputs are not those three, for every prior of the image.
        """
        count = len(priors(side))
        wanted = [(count, values) for values in (4, 2, 10)]
        if sorted(shapes) != sorted(wanted):
            raise ValueError(
                f"RetinaFace gives loc [{count}, 4], conf [{count}, 2] and landmarks [{count}, 10]"
            )
        return [shapes.index(shape) for shape in wanted]

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[DetectorRow], options: DetectorOptions
    ) -> list[Detections]:
        """One `Detections` per row, of the scores above the row's own `min_score`.

        Args:
            outputs: loc [N, P, 4], conf [N, P, 2] (softmaxed) and landmarks [N, P, 10].
            rows: the N square canvases of equal side.
            options: gives `nms_threshold`.

        Raises:
            ValueError: P is not the number of priors of the canvas.
        """
        loc, conf, landmarks = outputs
        return decode(
            loc,
            conf[..., 1],
            landmarks,
            side=rows[0].image.shape[0],
            min_scores=[row.min_score for row in rows],
            nms_threshold=options.nms_threshold,
        )


def _mobilenet() -> "RetinaFace":
    from mien_server.models.networks.retinaface import MobileNet025, RetinaFace

    return RetinaFace(MobileNet025(), width=64, slope=0.1, anchors=ANCHORS_PER_CELL)


def _resnet() -> "RetinaFace":
    from mien_server.models.networks.retinaface import ResNet50, RetinaFace

    return RetinaFace(ResNet50(), width=256, slope=0.0, anchors=ANCHORS_PER_CELL)


FAMILIES: tuple[AnyFamily, ...] = (
    RetinaFaceFamily("retinaface_mobilenet0.25", _mobilenet),
    RetinaFaceFamily("retinaface_resnet50", _resnet),
)
