"""An ONNX graph out of a checkpoint's tensors: for networks that are served as graphs alone."""

import torch

from mien_server.backends.weights_file import first_names
from mien_server.models.interface import ArrayF32
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.graph_builder import GraphBuilder
from mien_server.weights.recognise.state_dicts import FoundState

_EPSILON = 1e-5
_NORM = ("weight", "bias", "running_mean", "running_var")


class StateGraph(GraphBuilder):
    """Layers by the names that their publisher gave the tensors.

    Args:
        found: the tensors.
        network: what people call it, for errors.

    Attributes:
        state: the tensors by their names, float32.

    Raises:
        WeightsError: the checkpoint holds other tensors beside them.
    """

    def __init__(self, found: FoundState, network: str) -> None:
        super().__init__()
        if found.others:
            raise WeightsError(
                f"beside {network} at {found.where!r} it holds {len(found.others)} other tensors"
                f" ({first_names(found.others)}): torch.save the network's state_dict alone"
            )
        self.state: dict[str, ArrayF32] = {
            key: value.detach().to(torch.float32).numpy()
            for key, value in found.state.items()
            if not key.endswith(".num_batches_tracked")
        }
        self._network = network
        self._used: set[str] = set()

    def norm(self, name: str, value: str) -> str:
        """A batch norm."""
        parts = [self.tensor(f"{name}.{part}") for part in _NORM]
        return self.add("BatchNormalization", [value, *parts], epsilon=_EPSILON)

    def tensor(self, key: str) -> str:
        """A tensor of the checkpoint as a constant.

        Raises:
            WeightsError: there is none of that name, or it is not finite.
        """
        return self.weight(key, self.array(key))

    def array(self, key: str) -> ArrayF32:
        """The values of a tensor, which is used by that.

        Raises:
            WeightsError: there is none of that name.
        """
        try:
            array = self.state[key]
        except KeyError:
            raise WeightsError(f"it looks like {self._network}, but has no {key}") from None
        self._used.add(key)
        return array

    def check_all_used(self) -> None:
        """Call it once the graph is whole.

        Raises:
            WeightsError: there are tensors that no layer has used.
        """
        if left := sorted(self.state.keys() - self._used):
            raise WeightsError(
                f"it looks like {self._network}, but holds {len(left)} tensors more ({first_names(left)})"
            )
