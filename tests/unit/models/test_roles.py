"""What detectors and embedders take and give."""

import numpy as np

from mien_server.models.detections import Detections
from mien_server.models.roles import DETECTOR, EMBEDDER


def test_vectors_agree_by_their_direction() -> None:
    vector = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    assert EMBEDDER.agree(vector, 3 * vector)
    assert not EMBEDDER.agree(vector, -vector)
    assert not EMBEDDER.agree(vector, np.zeros(128, np.float32))
    assert not EMBEDDER.agree(vector, np.full(128, np.nan, np.float32))
    assert not EMBEDDER.agree(vector, vector[::-1].copy())


def test_faces_agree_if_each_has_its_box() -> None:
    def found(*boxes: tuple[float, float, float, float]) -> Detections:
        count = len(boxes)
        return Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.ones(count, np.float32),
            np.zeros((count, 5, 2), np.float32),
        )

    one, two = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 40.0, 30.0)
    assert DETECTOR.agree(found(), found())
    assert DETECTOR.agree(found(one, two), found(two, one))
    assert DETECTOR.agree(found(one), found((0.0, 0.0, 10.0, 11.0)))
    assert not DETECTOR.agree(found(one), found())
    assert not DETECTOR.agree(found(), found(one))
    assert not DETECTOR.agree(found(one), found(two))
    assert not DETECTOR.agree(found(one), found((0.0, 0.0, 10.0, 14.0)))
