"""The graphs that mien carries are those that PyTorch exports."""

import pytest

from mien_server.backends import checkpoint
from mien_server.models.families import find_family
from mien_server.weights.known_graphs import known_graph, layout_of
from tools import known_graphs


@pytest.mark.parametrize("architecture", known_graphs.ARCHITECTURES)
def test_a_graph_is_what_pytorch_exports(architecture: str) -> None:
    carried = (known_graphs.FOLDER / f"{architecture}.onnx").read_bytes()
    assert carried == known_graphs.make(architecture), "run python -m tools.known_graphs"


@pytest.mark.parametrize("architecture", known_graphs.ARCHITECTURES)
def test_its_layout_is_that_of_the_network(architecture: str) -> None:
    graph = known_graph(architecture)
    assert graph is not None
    network = find_family(architecture).network()
    assert layout_of(graph) == checkpoint.layout_of(network.state_dict())


def test_no_graph_is_carried_that_nothing_makes() -> None:
    carried = {path.name for path in known_graphs.FOLDER.iterdir()}
    assert carried == {f"{architecture}.onnx" for architecture in known_graphs.ARCHITECTURES}
    assert known_graph("iresnet18") is None
