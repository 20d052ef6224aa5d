"""What all embedding networks have in common: one output, and each of its rows is a result."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from mien_server.models.interface import AnyFamily, ArrayF32, NoNetwork
from mien_server.models.roles import EMBEDDER, EmbedderOptions, EmbedderRow

if TYPE_CHECKING:
    from torch import nn


class EmbedderFamily:
    """A network whose only output [N, dimensions] is the embedding: `interface.Family` of embedders."""

    role = EMBEDDER

    def __init__(self, name: str, build: Callable[[], "nn.Module"]) -> None:
        self.name = name
        self._build = build

    def network(self) -> "nn.Module":
        """A new network with random weights, in eval mode.

        Raises:
            NoNetwork: it is a family of ONNX graphs.
        """
        return self._build().eval()

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:  # noqa: ARG002
        """The only output there is.

        Raises:
            ValueError: there are several, or it is no vector.
        """
        if [len(shape) for shape in shapes] != [1]:
            raise ValueError("an embedder gives one output, [dimensions]")
        return (0,)

    def results(
        self,
        outputs: Sequence[ArrayF32],
        rows: Sequence[EmbedderRow],
        options: EmbedderOptions,  # noqa: ARG002 - vectors are compared later
    ) -> list[ArrayF32]:
        """Each row's vector [dimensions] float32, as the network gave it: not normalised."""
        return [vector for vector, _ in zip(outputs[0], rows, strict=True)]


def _graphs_only() -> NoReturn:
    raise NoNetwork("any embedder's graph, of whatever layers")


FAMILIES: tuple[AnyFamily, ...] = (EmbedderFamily("embedder", _graphs_only),)
