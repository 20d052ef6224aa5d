"""What of the GPU path does not need a GPU: sizes, padding, staging, and who gets a lane."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mien_server.backends.cuda import CudaRunner, StagedRows, capture_sizes, padded_size
from mien_server.models.interface import ArrayF32, ImageU8


def _on_the_heap(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 255, dtype=torch.uint8)


class _FirstPixels:
    """Answers the first pixel of each wanted row."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
        self.shapes.append(tuple(batch.pixels.shape))
        return (batch.pixels[: batch.rows, 0, 0].float().numpy(),)


def _images(values: Sequence[int], side: int = 4) -> list[ImageU8]:
    return [np.full((side, side, 3), value, np.uint8) for value in values]


@pytest.mark.parametrize(
    ("maximum", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (24, (1, 2, 4, 8, 16, 24))],
)
def test_powers_of_two_up_to_the_maximum_are_captured(maximum: int, sizes: tuple[int, ...]) -> None:
    assert capture_sizes(maximum) == sizes


@given(maximum=st.integers(1, 512), data=st.data())
def test_every_batch_has_a_captured_size_that_wastes_less_than_half(
    maximum: int, data: st.DataObject
) -> None:
    sizes = capture_sizes(maximum)
    rows = data.draw(st.integers(1, maximum))
    size = padded_size(rows, sizes)
    assert size in sizes
    assert rows <= size < 2 * rows
    assert list(sizes) == sorted(set(sizes))


def test_more_rows_than_the_largest_size_are_not_padded() -> None:
    assert padded_size(9, (1, 2, 4, 8)) == 9


def test_a_batch_is_padded_with_black_to_a_captured_size() -> None:
    runner = CudaRunner([_FirstPixels()], (4,), (1, 2, 4), _on_the_heap)
    batch = runner.collate(_images([10, 20, 30]))
    assert batch.rows == 3
    assert batch.pixels[:, 0, 0, 0].tolist() == [10, 20, 30, 0]
    assert not batch.pixels[3].any()


def test_a_size_that_was_not_captured_is_staged_as_it_is() -> None:
    runner = CudaRunner([_FirstPixels()], (4,), (1, 2, 4), _on_the_heap)
    assert runner.collate(_images([1, 2, 3], side=5)).pixels.shape == (3, 5, 5, 3)
    assert runner.collate(_images([1] * 5)).pixels.shape == (5, 4, 4, 3)


def test_padding_never_reaches_the_outputs() -> None:
    lane = _FirstPixels()
    runner = CudaRunner([lane], (4,), (1, 2, 4), _on_the_heap)
    (output,) = runner.run(runner.collate(_images([10, 20, 30])))
    assert lane.shapes == [(4, 4, 4, 3)]
    assert output.tolist() == [[v, v, v] for v in (10.0, 20.0, 30.0)]


def test_images_of_different_shapes_or_another_dtype_are_refused() -> None:
    runner = CudaRunner([_FirstPixels()], (4,), (1, 2, 4), _on_the_heap)
    with pytest.raises(ValueError):
        runner.collate([*_images([1]), *_images([1], side=5)])
    with pytest.raises(TypeError):
        runner.collate([np.zeros((4, 4, 3), np.float32)])


def test_batches_run_side_by_side_on_different_lanes() -> None:
    together = threading.Barrier(2, timeout=10)

    class Meeting(_FirstPixels):
        def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
            together.wait()
            return super().run(batch)

    runner = CudaRunner([Meeting(), Meeting()], (4,), (1,), _on_the_heap)
    answers: dict[int, float] = {}

    def call(value: int) -> None:
        answers[value] = runner.run(runner.collate(_images([value])))[0][0, 0]

    threads = [threading.Thread(target=call, args=(value,)) for value in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {3: 3.0, 4: 4.0}


def test_a_lane_that_failed_serves_the_next_batch() -> None:
    class FailsOnce(_FirstPixels):
        def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
            outputs = super().run(batch)
            if len(self.shapes) == 1:
                raise RuntimeError("out of memory")
            return outputs

    runner = CudaRunner([FailsOnce()], (4,), (1,), _on_the_heap)
    batch = runner.collate(_images([7]))
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.run(batch)
    assert runner.run(batch)[0][0, 0] == 7.0
