"""RetinaFace: one pass over a photo gives face boxes, scores and five landmarks.

Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild", arXiv:1905.00641.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mien_server.models.detections import Detections
from mien_server.models.interface import AnyFamily, ArrayF32
from mien_server.models.retinaface_decode import decode, priors
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow

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

    return RetinaFace(MobileNet025(), width=64, slope=0.1)


def _resnet() -> "RetinaFace":
    from mien_server.models.networks.retinaface import ResNet50, RetinaFace

    return RetinaFace(ResNet50(), width=256, slope=0.0)


FAMILIES: tuple[AnyFamily, ...] = (
    RetinaFaceFamily("retinaface_mobilenet0.25", _mobilenet),
    RetinaFaceFamily("retinaface_resnet50", _resnet),
)
