"""ULFD: boxes without landmarks, seen from the priors of four grids.

The "Ultra-Light-Fast-Generic-Face-Detector-1MB" by Linzaer, RFB and slim: SSD with few channels. The public
detectors (version-RFB-320.onnx and its relatives) are ONNX graphs; there is no network of it here. Importing
and installing take the decoding out of such a graph, so that it sees canvases of any size: see
`weights.recognise.ulfd_graph`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

import numpy as np

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import AnyFamily, ArrayF32, NoNetwork
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

SIDES = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}
"""Of each grid, by the pixels between its points: the sides of the squares there, in pixels."""
CENTRE, SIZE = 0.1, 0.2
"""What a prior's offsets and the logarithms of its sizes are multiplied by."""


@lru_cache(maxsize=16)
def priors(height: int, width: int) -> ArrayF32:
    """The squares that boxes are told by: centre x, centre y and side in pixels, [P, 3] float32.

    Each grid's points lie where its network looks, half a step from the edge and a step apart. Order: grid,
    row, column, side. P is 4,420 for 240x320, 17,640 for 480x640. Read-only, since it is shared.
    """
    grids = []
    for step, sides in SIDES.items():
        down, across = (
            (np.arange(-(-size // step), dtype=np.float32) + 0.5) * step for size in (height, width)
        )
        y, x, side = np.meshgrid(down, across, np.array(sides, np.float32), indexing="ij")
        grids.append(np.stack([x, y, side], axis=-1).reshape(-1, 3))
    found = np.concatenate(grids)
    found.setflags(write=False)
    return found


def corners(offsets: ArrayF32, squares: ArrayF32) -> ArrayF32:
    """Boxes [n, 4], x1 y1 x2 y2 in pixels, of a network's offsets [n, 4] from priors [n, 3]."""
    side = squares[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        centre = squares[:, :2] + offsets[:, :2] * CENTRE * side
        half = np.exp(offsets[:, 2:] * SIZE) * side / 2
        found: ArrayF32 = np.concatenate([centre - half, centre + half], axis=1)
    return found


class UlfdFamily:
    """ULFD: `interface.Family` of detectors that place no landmarks.

    The graph has two outputs: for each prior, the probabilities of ground and of face, and the box: its
    centre's offset, and the logarithms of its size.
    """

    name = "ulfd"
    role = DETECTOR

    def network(self) -> NoReturn:
        """There is none.

        Raises:
            NoNetwork: always.
        """
        raise NoNetwork("ULFD is an ONNX graph")

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        """Probabilities and boxes, wherever the graph has them.

        Raises:
            ValueError: one is missing or there are others.
        """
        count = len(priors(side, side))
        wanted = [(count, 2), (count, 4)]
        if sorted(shapes) != wanted:
            raise ValueError(f"ULFD gives {wanted}, before it is decoded: import it anew")
        return [shapes.index(shape) for shape in wanted]

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[DetectorRow], options: DetectorOptions
    ) -> list[Detections]:
        """One `Detections` per row, of the scores above the row's own `min_score`, without landmarks.

        Args:
            outputs: probabilities [N, P, 2] and offsets [N, P, 4].
            rows: the N square canvases of equal side.
            options: gives `nms_threshold`.

        Raises:
            ValueError: the outputs are not those of such canvases.
        """
        scores, offsets = outputs[0][..., 1], outputs[1]
        side = rows[0].image.shape[0]
        squares = priors(side, side)
        if scores.shape[1] != len(squares):
            raise ValueError(
                f"the outputs speak of {scores.shape[1]} priors, a canvas of {side} pixels has"
                f" {len(squares)}"
            )
        row, prior = candidates(scores, [each.min_score for each in rows])
        return detections(
            row,
            corners(offsets[row, prior], squares[prior]),
            scores[row, prior],
            np.empty((len(row), 0, 2), np.float32),
            photos=len(rows),
            nms_threshold=options.nms_threshold,
        )


FAMILIES: tuple[AnyFamily, ...] = (UlfdFamily(),)
