"""Where MTCNN's crops come from."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mien_server.models.interface import ArrayF32
from mien_server.models.networks.mtcnn_pyramid import Pyramid


def ramps(*slopes: tuple[float, float], height: int = 160, width: int = 160) -> Tensor:
    """Pictures [N, 2, height, width] whose two channels grow evenly along x and y."""
    x, y = (torch.arange(length) + 0.5 for length in (width, height))
    across, down = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([torch.stack([a * across, b * down]) for a, b in slopes])


def pyramid_of(images: Tensor) -> Pyramid:
    return Pyramid(images, first=0.6, factor=0.709, smallest=12)


def expected_ramp(box: ArrayF32, side: int) -> tuple[ArrayF32, ArrayF32]:
    steps = (np.arange(side, dtype=np.float32) + 0.5) / side
    return box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])


def test_copies_shrink_by_the_factor_down_to_the_smallest() -> None:
    copies = pyramid_of(ramps((1, 1), height=100, width=200)).copies
    assert [tuple(copy.shape[-2:]) for copy in copies] == [
        *((60, 120), (43, 85), (30, 60), (21, 43), (15, 30))
    ]


def test_a_canvas_that_is_too_small_has_no_copies() -> None:
    assert pyramid_of(ramps((1, 1), height=19, width=400)).copies == []


def test_a_canvas_that_is_just_large_enough_has_one_copy() -> None:
    (copy,) = pyramid_of(ramps((1, 1), height=20, width=400)).copies
    assert copy.shape[-2:] == (12, 240)


@pytest.mark.parametrize("side", [64, 100, 101])
def test_every_copy_shows_the_whole_canvas(side: int) -> None:
    images = ramps((1, 1), height=side, width=side)
    pyramid = pyramid_of(images)
    for copy in pyramid.copies:
        # In the middle of a ramp interpolation is exact; borders average what there is.
        size = copy.shape[-1]
        centres = (torch.arange(size) + 0.5) * side / size
        torch.testing.assert_close(copy[0, 0, 0, 4:-4], centres[4:-4], atol=0.35, rtol=0)
        window = np.array([[0, 0, size, size]])
        np.testing.assert_allclose(pyramid.to_canvas(window, copy), [[0, 0, side, side]])


@pytest.mark.parametrize(
    "box", [(8, 20, 20, 32), (30.25, 41.5, 66.25, 77.5), (20, 15, 140, 135), (60, 60, 61.5, 61.5)]
)
@pytest.mark.parametrize("side", [24, 48])
def test_a_crop_shows_its_box_whatever_the_scale(
    box: tuple[float, float, float, float], side: int
) -> None:
    corners = np.array([box], np.float32)
    (crop,) = pyramid_of(ramps((1, 1))).crops(np.array([0]), corners, side).numpy()
    x, y = expected_ramp(corners[0], side)
    np.testing.assert_allclose(crop[0], np.tile(x, (side, 1)), atol=0.35)
    np.testing.assert_allclose(crop[1], np.tile(y[:, None], side), atol=0.35)


def test_each_crop_comes_from_its_own_canvas() -> None:
    slopes = [(1.0, 0.0), (0.0, 2.0), (3.0, 1.0)]
    pyramid = pyramid_of(ramps(*slopes))
    row = np.array([2, 0, 1, 2])
    boxes = np.array(
        [(20, 20, 40, 40), (16, 24, 136, 144), (120, 120, 180, 180), (-20, -20, 40, 40)], np.float32
    )
    together = pyramid.crops(row, boxes, 24)
    for number, photo in enumerate(row):
        alone = pyramid_of(ramps(slopes[photo])).crops(np.array([0]), boxes[number, None], 24)
        assert torch.equal(together[number], alone[0])


def test_beyond_the_canvas_its_border_goes_on() -> None:
    box = np.array([[-160.0, -160.0, 0.5, 0.5]], np.float32)
    (crop,) = pyramid_of(ramps((1, 1))).crops(np.array([0]), box, 24)
    assert crop.unique().numel() == 1
    far = np.array([[1e9, 1e9, 2e9, 2e9]], np.float32)
    assert torch.isfinite(pyramid_of(ramps((1, 1))).crops(np.array([0]), far, 24)).all()


def test_a_large_box_is_averaged_not_sampled() -> None:
    stripes = torch.zeros(1, 1, 640, 640)
    stripes[..., ::2] = 1
    box = np.array([[0, 0, 640, 640]], np.float32)
    (crop,) = pyramid_of(stripes).crops(np.array([0]), box, 24)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.5), atol=0.05, rtol=0)


def test_copies_are_averages_of_whole_pixels_where_they_can_be() -> None:
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    copies = Pyramid(images, first=0.5, factor=0.5, smallest=12).copies
    for copy, size in zip(copies, (2, 4), strict=True):
        torch.testing.assert_close(copy, avg_pool2d(images, size))


def test_a_crop_of_the_wanted_size_is_cut_out_of_the_canvas_itself() -> None:
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    box = np.array([[5, 20, 29, 44]], np.float32)
    (crop,) = pyramid_of(images).crops(np.array([1]), box, 24)
    torch.testing.assert_close(crop, images[1, :, 20:44, 5:29])
    corner = np.array([[36, 52, 48, 64]], np.float32)
    (crop,) = pyramid_of(images).crops(np.array([0]), corner, 12)
    torch.testing.assert_close(crop, images[0, :, 52:, 36:])
    first = np.array([[-12, 0, 0, 12]], np.float32)
    (crop,) = pyramid_of(images).crops(np.array([0]), first, 12)
    torch.testing.assert_close(crop, images[0, :, :12, :1].expand(-1, -1, 12))


def test_no_boxes_give_no_crops() -> None:
    none = pyramid_of(ramps((1, 1))).crops(np.empty(0, np.int64), np.empty((0, 4), np.float32), 24)
    assert none.shape == (0, 2, 24, 24)
