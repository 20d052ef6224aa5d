"""MTCNN: three small networks, each looking harder at what the one before took for a face.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
arXiv:1604.02878, section II.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import AnyFamily, ArrayF32
from mien_server.models.mtcnn_boxes import nested
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

if TYPE_CHECKING:
    from mien_server.models.networks.mtcnn import MTCNN

NESTED_SHARE = 0.7
"""Share of the smaller of two faces beyond which they are one."""


class MTCNNFamily:
    """MTCNN: `interface.Family` of detectors."""

    name = "mtcnn"
    role = DETECTOR

    def network(self) -> "MTCNN":
        """A new cascade with random weights, in eval mode."""
        from mien_server.models.networks.mtcnn import MTCNN

        return MTCNN().eval()

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> NoReturn:  # noqa: ARG002
        """No single graph is MTCNN.

        Raises:
            ValueError: always.
        """
        raise ValueError("MTCNN is a cascade of three networks, which backend pytorch runs")

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[DetectorRow], options: DetectorOptions
    ) -> list[Detections]:
        """One `Detections` per row, of the candidates whose O-Net score is above the row's `min_score`.

        Args:
            outputs: boxes [N, K, 4], scores [N, K] and landmarks [N, K, 5, 2].
            rows: the N canvases.
            options: gives `nms_threshold`; faces inside each other are one, whatever it is.
        """
        boxes, scores, landmarks = outputs
        row, candidate = candidates(scores, [each.min_score for each in rows])
        found = detections(
            row,
            boxes[row, candidate],
            scores[row, candidate],
            landmarks[row, candidate],
            photos=len(rows),
            nms_threshold=options.nms_threshold,
        )
        return [faces.take(~nested(faces.boxes, NESTED_SHARE)) for faces in found]


FAMILIES: tuple[AnyFamily, ...] = (MTCNNFamily(),)
