"""A loaded version of a model on a device, whatever backend runs it, and how graphs take their rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.backends import memory
from mien_server.backends.precision import ResolvedPrecision
from mien_server.backends.weights_file import LoadError
from mien_server.models.interface import AnyFamily, ArrayF32, ImageU8

Rows = NDArray[Any]
"""What a graph takes, the batch's axis first."""

Run = Callable[[Rows], Sequence[ArrayF32]]
"""Runs a graph once, on as many rows as it takes."""

_SAME = 1e-4
"""Rows count as independent if others beside them move their outputs by less, as a share of the largest."""


class Layout(NamedTuple):
    """How a graph wants its rows, and gives its outputs.

    Attributes:
        rows: that it takes at once; 0: any number.
        batched: whether its outputs have an axis for the batch. If not, rows is 1.
    """

    rows: int
    batched: bool


def run_rows(
    run: Run, batch: Rows, layout: Layout, *, most: int | None = None
) -> tuple[ArrayF32, ...]:
    """The outputs for any number of rows, from as many runs as that takes.

    Args:
        run: runs the graph.
        batch: at least one row.
        layout: of the graph.
        most: rows that a run may have, if the graph takes any number; None: all.
    """
    size = layout.rows or most or len(batch)
    if len(batch) <= size and layout.batched and not layout.rows:
        return tuple(run(batch))
    parts = [
        _part(run, batch[start : start + size], layout) for start in range(0, len(batch), size)
    ]
    if len(parts) == 1:
        return tuple(parts[0])
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def _part(run: Run, rows: Rows, layout: Layout) -> Sequence[ArrayF32]:
    """The outputs for as many rows as the graph takes at once, or for fewer."""
    if not layout.batched:
        return [output[None] for output in run(rows)]
    missing = layout.rows - len(rows)
    if missing <= 0:
        return run(rows)
    padding = np.zeros((missing, *rows.shape[1:]), rows.dtype)
    return [output[: len(rows)] for output in run(np.concatenate([rows, padding]))]


def probe(run: Run, pixels: Rows, batch: int) -> tuple[Layout, list[tuple[int, ...]]]:
    """Runs different images, together if the graph can, and sees whether each gets its own outputs.

    What a graph declares is no guide: exporters leave shapes out, or write the one image that they traced
    with into a reshape, or mix the rows of a batch.

    Args:
        run: runs the graph; raises LoadError if it cannot.
        pixels: as many images as `batch`, at least two.
        batch: how many rows the graph says that it takes; 0: any number.

    Returns:
        the layout, and the outputs' shapes for one row.

    Raises:
        LoadError: the graph cannot be run, or gives no outputs for each row.
    """
    if batch > 1:
        outputs = run(pixels)
        if any(output.shape[:1] != (batch,) for output in outputs):
            raise LoadError(
                f"it takes {batch} images at once, but gives no outputs for each: export it with"
                " a dynamic batch"
            )
        return Layout(batch, batched=True), [output.shape[1:] for output in outputs]
    alone = run(pixels[:1])
    batched = all(output.shape[:1] == (1,) for output in alone)
    several = batched and not batch and _independent(run, pixels, alone)
    shapes = [output.shape[1:] if batched else output.shape for output in alone]
    return Layout(0 if several else 1, batched), shapes


def _independent(run: Run, pixels: Rows, alone: Sequence[ArrayF32]) -> bool:
    """Whether the first image's outputs are the same among others as they are `alone`."""
    try:
        together = run(pixels)
    except LoadError:
        return False
    return all(
        len(a) == len(pixels)
        and np.allclose(a[:1], b, rtol=0, atol=_SAME * np.abs(b).max(initial=0))
        for a, b in zip(together, alone, strict=True)
    )


def as_seen(images: Sequence[ImageU8], channel_order: str) -> Sequence[ImageU8]:
    """RGB images [H, W, 3] with the channels that a network sees: [H, W, 1] if it is GREY."""
    if channel_order != "GREY":
        return images
    return [
        np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None] for image in images
    ]


def probe_pictures(side: int, batch: int) -> list[NDArray[np.uint8]]:
    """Different images [side, side, 3] for `probe`."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(max(batch, 2))]


def arrange(
    family: AnyFamily, shapes: Sequence[tuple[int, ...]], side: int, path: Path
) -> Sequence[int]:
    """Which outputs of a graph the family takes, in its order.

    Raises:
        LoadError: it is no graph of the family's.
    """
    try:
        return family.arrange(shapes, side)
    except ValueError as error:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise LoadError(
            f"{path} is no graph of architecture {family.name!r}: for an image of {side} pixels it"
            f" gives {found}, but {error}"
        ) from error


Computes: TypeAlias = ResolvedPrecision | Literal["int8"]
"""What a loaded version computes in."""


class Runner(Protocol):
    """Runs a network on one kind of device. Its batches are opaque to everyone else."""

    def collate(self, images: Sequence[ImageU8]) -> Any:
        """Images [H, W, 3] of one shape to one batch."""
        ...

    def run(self, batch: Any) -> tuple[ArrayF32, ...]:
        """The network's outputs for such a batch, batch first."""
        ...

    def rest(self) -> None:
        """Gives back what running has taken and the next run can take again. None runs meanwhile."""
        ...


class LoadedInstance:
    """A loaded network on a device: `scheduling.interface.Instance`. Safe under several threads.

    Attributes:
        precision: what it computes in: "auto" resolved.
    """

    def __init__(
        self, runner: Runner, family: AnyFamily, options: Any, precision: Computes
    ) -> None:
        self.precision: Computes = precision
        self._runner = runner
        self._family = family
        self._options = options

    def collate(self, rows: Sequence[Any]) -> Any:
        """Stacks rows of equal shape: anything with an `image`, [H, W, 3] uint8 RGB.

        Raises:
            ValueError: the images' shapes differ.
            TypeError: an image is not uint8.
        """
        return self._runner.collate([row.image for row in rows])

    def compute(self, batch: Any) -> tuple[ArrayF32, ...]:
        """The network's raw outputs, float32, batch first."""
        return self._runner.run(batch)

    def split(self, outputs: tuple[ArrayF32, ...], rows: Sequence[Any]) -> list[Any]:
        """The family's results, one per row."""
        return self._family.results(outputs, rows, self._options)

    def rest(self) -> None:
        """Gives back memory that running has taken and the next run can take again. None runs meanwhile."""
        self._runner.rest()

    def close(self) -> None:
        """Frees the network's memory. The last batch must have run; none can follow."""
        del self._runner
        memory.release()
