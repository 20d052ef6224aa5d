"""YuNet: boxes and landmarks seen from the cells of three grids, one face at most in each.

Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20 (2023). The
public detector (the OpenCV Zoo's `face_detection_yunet_2023mar.onnx`) is an ONNX graph; there is no network
of it here.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

import numpy as np

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import AnyFamily, ArrayF32, NoNetwork
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

STRIDES = (8, 16, 32)
"""Pixels between the cells of each grid."""
KINDS = (1, 1, 4, 10)
"""Values for each cell: how much it is a face's, how well a face lies in it, box, landmarks."""


@lru_cache(maxsize=16)
def cells(side: int) -> ArrayF32:
    """The cells of a square canvas: left, top and stride, in canvas pixels, [P, 3] float32.

    Order: grid, row, column. P is 8,400 for a side of 640. Read-only, since it is shared.
    """
    grids = []
    for stride in STRIDES:
        ticks = np.arange(side // stride, dtype=np.float32) * stride
        y, x = np.meshgrid(ticks, ticks, indexing="ij")
        grids.append(np.stack([x, y, np.full_like(x, stride)], axis=-1).reshape(-1, 3))
    found = np.concatenate(grids)
    found.setflags(write=False)
    return found


class YunetFamily:
    """YuNet: `interface.Family` of detectors.

    The graph has twelve outputs: for each stride two probabilities, the box (its centre's distance from the
    cell, and the logarithms of its size) and the landmarks' distances from the cell, in units of the stride.
    """

    name = "yunet"
    role = DETECTOR

    def network(self) -> NoReturn:
        """There is none.

        Raises:
            NoNetwork: always.
        """
        raise NoNetwork("YuNet is an ONNX graph")

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        """Both probabilities, boxes and landmarks, each by stride, wherever the graph has them.

        Both probabilities of a stride look alike: the score is the same whichever is which.

        Raises:
            ValueError: one is missing or there are others.
        """
        wanted = [((side // stride) ** 2, values) for values in KINDS for stride in STRIDES]
        if sorted(shapes) != sorted(wanted):
            raise ValueError(f"YuNet gives {wanted}")
        left = list(enumerate(shapes))
        found = []
        for shape in wanted:
            at = next(each for each in left if each[1] == shape)
            left.remove(at)
            found.append(at[0])
        return found

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[DetectorRow], options: DetectorOptions
    ) -> list[Detections]:
        """One `Detections` per row, of the scores above the row's own `min_score`.

        A score is the geometric mean of both probabilities.

        Args:
            outputs: for each stride, probabilities [N, n, 1], others [N, n, 1], boxes [N, n, 4] (x, y, width,
                height), landmarks [N, n, 10] (x, y of five points): all strides of the first, and so on.
            rows: the N square canvases of equal side.
            options: gives `nms_threshold`.

        Raises:
            ValueError: the outputs are not those of such canvases.
        """
        face, fit, boxes, landmarks = (
            np.concatenate(outputs[start : start + len(STRIDES)], axis=1)
            for start in range(0, len(outputs), len(STRIDES))
        )
        side = rows[0].image.shape[0]
        grid = cells(side)
        if face.shape[1] != len(grid):
            raise ValueError(
                f"the outputs speak of {face.shape[1]} cells, a canvas of {side} pixels has {len(grid)}"
            )
        scores = np.sqrt(np.clip(face[..., 0], 0, 1) * np.clip(fit[..., 0], 0, 1))
        row, cell = candidates(scores, [each.min_score for each in rows])
        corner, stride = grid[cell, :2], grid[cell, 2:]
        box, marks = boxes[row, cell], landmarks[row, cell].reshape(-1, 5, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            centre = corner + box[:, :2] * stride
            half = np.exp(box[:, 2:]) * stride / 2
            corners = np.concatenate([centre - half, centre + half], axis=1)
            points = corner[:, None] + marks * stride[:, None]
        return detections(
            row,
            corners,
            scores[row, cell],
            points,
            photos=len(rows),
            nms_threshold=options.nms_threshold,
        )


FAMILIES: tuple[AnyFamily, ...] = (YunetFamily(),)
