"""The largest faces of a batch of photos, on OpenVINO: what LitServe and Ray Serve run for every batch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.peers.by_hand import faces
from bench.peers.by_hand.arrays import Floats
from bench.peers.by_hand.openvino_networks import OpenVinoNetworks

BATCH = 4
BATCH_SECONDS = 0.002


class Embedded(NamedTuple):
    """A face of the photo and its vector [d], not of unit length."""

    photo: faces.Photo
    face: faces.Face
    vector: Floats


class BatchedFaces:
    """Both networks, each called once for a whole batch, with one thread: processes use the other cores."""

    def __init__(self, graphs: Path, canvas: int) -> None:
        self.networks = OpenVinoNetworks(graphs, canvas, INFERENCE_NUM_THREADS=1)
        self.canvas = canvas

    def embed(self, jpegs: list[bytes]) -> list[Embedded | None]:
        """The largest face of each photo; None if it has none."""
        photos = [faces.decode(jpeg) for jpeg in jpegs]
        fitted = [faces.letterbox(photo, self.canvas) for photo in photos]
        outputs = self.networks.run("retinaface", np.stack([canvas for canvas, _ in fitted]))
        found = [
            faces.find(loc, conf, points, self.canvas, scale)
            for loc, conf, points, (_, scale) in zip(*outputs, fitted, strict=True)
        ]
        largest = [max(some, key=faces.area) if some else None for some in found]
        crops = [
            faces.align(photo.pixels, face.landmarks)
            for photo, face in zip(photos, largest, strict=True)
            if face is not None
        ]
        vectors = iter(self.networks.embed(np.stack(crops), "sface") if crops else ())
        return [
            None if face is None else Embedded(photo, face, next(vectors))
            for photo, face in zip(photos, largest, strict=True)
        ]
