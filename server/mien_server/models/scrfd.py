"""SCRFD: boxes and landmarks as distances from the points of three grids.

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", arXiv:2105.04714. The
public detectors (InsightFace's `det_10g.onnx`, `det_500m.onnx`) are ONNX graphs; there is no network of it
here.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

import numpy as np

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import AnyFamily, ArrayF32, NoNetwork
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

STRIDES = (8, 16, 32)
"""Pixels between the points of each grid."""
ANCHORS_PER_POINT = 2
KINDS = (1, 4, 10)
"""Values for each anchor: score, box, landmarks."""


@lru_cache(maxsize=16)
def anchors(side: int) -> ArrayF32:
    """The anchors of a square canvas: x, y and stride, in canvas pixels, [P, 3] float32.

    Order: grid, row, column, anchor. P is 16,800 for a side of 640. Read-only, since it is shared.
    """
    grids = []
    for stride in STRIDES:
        ticks = np.arange(-(-side // stride), dtype=np.float32) * stride
        y, x, _ = np.meshgrid(ticks, ticks, np.arange(ANCHORS_PER_POINT), indexing="ij")
        grids.append(np.stack([x, y, np.full_like(x, stride)], axis=-1).reshape(-1, 3))
    points = np.concatenate(grids)
    points.setflags(write=False)
    return points


class ScrfdFamily:
    """SCRFD with landmarks: `interface.Family` of detectors.

    The graph has nine outputs: for each stride the score, the distances to the box's four sides and the
    offsets of the five landmarks, both in units of the stride.
    """

    name = "scrfd"
    role = DETECTOR

    def network(self) -> NoReturn:
        """There is none.

        Raises:
            NoNetwork: always.
        """
        raise NoNetwork("SCRFD is an ONNX graph")

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        """Scores, boxes and landmarks, each by stride, wherever the graph has them.

        Raises:
            ValueError: one is missing or there are others: such as without landmarks.
        """
        wanted = [
            (ANCHORS_PER_POINT * (-(-side // stride)) ** 2, values)
            for values in KINDS
            for stride in STRIDES
        ]
        if sorted(shapes) == sorted(shape for shape in wanted if shape[1] != KINDS[-1]):
            raise ValueError("this SCRFD gives no landmarks, without which no face can be aligned")
        if sorted(shapes) != sorted(wanted):
            raise ValueError(f"SCRFD with landmarks gives {wanted}")
        return [shapes.index(shape) for shape in wanted]

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[DetectorRow], options: DetectorOptions
    ) -> list[Detections]:
        """One `Detections` per row, of the scores above the row's own `min_score`.

        Args:
            outputs: scores [N, n, 1] for each stride, then boxes [N, n, 4] (left, top, right, bottom), then
                landmarks [N, n, 10] (x, y of five points).
            rows: the N square canvases of equal side.
            options: gives `nms_threshold`.

        Raises:
            ValueError: the outputs are not those of such canvases.
        """
        scores, boxes, landmarks = (
            np.concatenate(outputs[start : start + len(STRIDES)], axis=1)
            for start in range(0, len(outputs), len(STRIDES))
        )
        side = rows[0].image.shape[0]
        points = anchors(side)
        if scores.shape[1] != len(points):
            raise ValueError(
                f"the outputs speak of {scores.shape[1]} anchors, a canvas of {side} pixels has"
                f" {len(points)}"
            )
        row, anchor = candidates(scores[..., 0], [each.min_score for each in rows])
        centre, stride = points[anchor, :2], points[anchor, 2:]
        with np.errstate(over="ignore", invalid="ignore"):
            distances = boxes[row, anchor] * stride
            offsets = (landmarks[row, anchor] * stride).reshape(-1, 5, 2)
            corners = np.concatenate([centre - distances[:, :2], centre + distances[:, 2:]], axis=1)
            marks = centre[:, None] + offsets
        return detections(
            row,
            corners,
            scores[row, anchor, 0],
            marks,
            photos=len(rows),
            nms_threshold=options.nms_threshold,
        )


FAMILIES: tuple[AnyFamily, ...] = (ScrfdFamily(),)
