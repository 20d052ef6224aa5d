"""MTCNN: three small networks, each looking harder at what the one before took for a face.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
arXiv:1604.02878, section II.

For its backend the whole cascade is one network. All canvases of a batch go through P-Net together, once
per scale, and the candidates of all of them go through R-Net and O-Net together. What becomes of a
candidate depends on its own canvas alone.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mien_server.models.interface import ArrayF32
from mien_server.models.mtcnn_boxes import (
    Candidates,
    calibrate,
    join,
    merge,
    place_in_photo,
    sizes,
    strongest,
    visible,
)
from mien_server.models.networks.mtcnn_networks import ONet, PNet, RNet
from mien_server.models.networks.mtcnn_pyramid import Pyramid

SMALLEST_WINDOW = 20
"""Side in canvas pixels of the smallest window that P-Net looks at."""
FACTOR = 0.709
"""From one scale to the next: half the area."""

PROPOSAL_SCORE = 0.6
"""P-Net's score to beat."""
REFINED_SCORE = 0.7
"""R-Net's score to beat. O-Net's is the request's."""

SAME_SCALE_OVERLAP = 0.5
"""IoU beyond which two candidates of one scale are one."""
OVERLAP = 0.7
"""The same for candidates of any scale."""

PROPOSALS = 2000
"""Best candidates of a photo that are merged into those for R-Net; likewise of one scale."""
REFINED = 1000
"""Best candidates of a photo that are merged into those for O-Net."""
CHUNK = 128
"""Crops that go through R-Net or O-Net at once."""


class MTCNN(nn.Module):
    """The cascade: the networks run where their weights are, the few boxes between them on the host."""

    CAPTURABLE = False

    def __init__(self) -> None:
        super().__init__()
        self.pnet = PNet()
        self.rnet = RNet()
        self.onet = ONet()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the cascade.

        Args:
            x: [N, 3, H, W], RGB, (pixel - 127.5) / 128.

        Returns:
            boxes [N, K, 4], scores [N, K] and landmarks [N, K, 5, 2], float32, in pixels of the canvas:
            what O-Net says of each of its candidates. K is the largest number of candidates that a
            canvas has, `REFINED` at most; canvases that have fewer are filled up with scores of 0.
        """
        # Half-precision coordinates would miss their pixels: only the networks compute in less.
        pyramid = Pyramid(
            x.float(), first=PNet.side / SMALLEST_WINDOW, factor=FACTOR, smallest=PNet.side
        )
        found = self._propose(pyramid, x.dtype)
        found = self._refine(pyramid, found, x.dtype)
        scores, offsets, points = _look(self.onet, pyramid, found, x.dtype)
        places = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sizes(found.boxes)[:, None]
        landmarks = found.boxes[:, None, :2] + places
        boxes = calibrate(found.boxes, offsets)
        row = found.row
        return _by_photo(row, boxes, x), _by_photo(row, scores, x), _by_photo(row, landmarks, x)

    def _propose(self, pyramid: Pyramid, dtype: torch.dtype) -> Candidates:
        """Squares around what P-Net takes for faces, at any scale."""
        found = []
        for copy in pyramid.copies:
            scores, offsets = self.pnet(copy.to(dtype))
            row, y, x = torch.nonzero(scores > PROPOSAL_SCORE, as_tuple=True)
            corner = PNet.stride * torch.stack([x, y], dim=1)
            windows = pyramid.to_canvas(_host(torch.cat([corner, corner + PNet.side], dim=1)), copy)
            boxes = calibrate(windows, _host(offsets[row, :, y, x]))
            these = Candidates(_host(row), boxes, _host(scores[row, y, x]))
            found.append(_best(these, pyramid, PROPOSALS, SAME_SCALE_OVERLAP))
        return _best(join(found), pyramid, PROPOSALS, OVERLAP).squared()

    def _refine(self, pyramid: Pyramid, found: Candidates, dtype: torch.dtype) -> Candidates:
        """Squares around what R-Net, too, takes for faces."""
        scores, offsets = _look(self.rnet, pyramid, found, dtype)
        these = Candidates(found.row, calibrate(found.boxes, offsets), scores)
        these = these.take(scores > REFINED_SCORE)
        return _best(these, pyramid, REFINED, OVERLAP).squared()


def _best(found: Candidates, pyramid: Pyramid, most: int, overlap: float) -> Candidates:
    """The best of each photo that are on it at all, merged where they overlap."""
    found = found.take(visible(found.boxes, pyramid.width, pyramid.height))
    return merge(strongest(found, most), overlap)


def _look(
    network: RNet | ONet, pyramid: Pyramid, found: Candidates, dtype: torch.dtype
) -> list[ArrayF32]:
    """The network's outputs for the crops of all candidates, a bounded number of crops at a time."""
    outputs = []
    for start in range(0, max(1, len(found.row)), CHUNK):
        part = found.take(np.arange(start, min(start + CHUNK, len(found.row))))
        crops = pyramid.crops(part.row, part.boxes, network.side)
        outputs.append([_host(output) for output in network(crops.to(dtype))])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def _host(tensor: Tensor) -> NDArray[Any]:
    """As a NumPy array: int64 stays, everything else becomes float32."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _by_photo(row: NDArray[np.int64], values: ArrayF32, photos: Tensor) -> Tensor:
    """Values [M, ...] of candidates, photo by photo, as [N, K, ...] filled up with 0, beside the photos."""
    place = place_in_photo(row)
    spread = np.zeros((len(photos), place.max(initial=-1) + 1, *values.shape[1:]), np.float32)
    spread[row, place] = values
    return torch.from_numpy(spread).to(photos.device)
