"""A loaded version of a model on a device, whatever backend runs it."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

from mien_server.backends import memory
from mien_server.backends.precision import ResolvedPrecision
from mien_server.models.interface import AnyFamily, ArrayF32, ImageU8

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
