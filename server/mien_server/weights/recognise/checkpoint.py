"""Tells by its content which network a checkpoint holds: the way in to this package."""

import math
from pathlib import Path

import onnx

from mien_server.backends.devices import has_pytorch
from mien_server.models.interface import Normalisation
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.formats import Contents, read
from mien_server.weights.recognise.graph_kinds import (
    GRAPHS,
    embedder_of,
    named,
    unknown_graph,
    with_shapes,
)
from mien_server.weights.recognise.recognised import Recognised


def recognise(
    path: Path, source: str = "", wanted: str = "", *, cropped: bool = False, part: str = ""
) -> list[Recognised]:
    """Everything that a file can be imported as, the best first.

    Args:
        path: a PyTorch, safetensors or ONNX file.
        source: where it came from, if that is known. It decides what the content does not tell.
        wanted: the architecture that it shall be, if one is asked for. A graph of a family that nothing here
            knows is taken for that; whether it is one, shows when it is run.
        cropped: whether it is said what an embedder sees of a face; its graph may then take any size.
        part: of a network that tells several things, which one it shall be; "": nobody has said it.

    Raises:
        WeightsError: there is nothing; the message names the file and says why not and what to do.
        OSError: the file cannot be read.
    """
    contents = read(path)
    try:
        if known := _with_parts(contents, part):
            return [known]
        return _look(contents, path, source, wanted, cropped=cropped)
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error}") from error


def as_analyser(path: Path, normalisation: Normalisation, *, part: str = "") -> Recognised:
    """What somebody says is an analyser: a known network, or a graph, which does not say what it tells.

    Args:
        normalisation: of its model's configuration.
        part: as of `recognise`.

    Raises:
        WeightsError: it is neither.
        OSError: it cannot be read.
    """
    contents = read(path)
    try:
        known = _with_parts(contents, part) or _liveness(contents)
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error}") from error
    if known:
        return known
    if not isinstance(contents, onnx.ModelProto):
        raise WeightsError(
            f"{path.name} is no ONNX file: analysers are ONNX graphs, export it to one"
        )
    weights = contents.graph.initializer
    return Recognised(
        title="an analyser, as its config.pbtxt says",
        backend="onnxruntime",
        architecture="analyser",
        weights=path,
        tensors=len(weights),
        parameters=sum(math.prod(tensor.dims) for tensor in weights),
        normalisation=normalisation,
        license="not stated",
    )


def _with_parts(contents: Contents, part: str) -> Recognised | None:
    """One part of a network that tells several things."""
    known = None
    if not isinstance(contents, onnx.ModelProto):
        from mien_server.weights.recognise.fairface import fairface

        known = fairface(contents, part)
    if part and known is None:
        raise WeightsError("it is not FairFace's network, the only one that --part is for")
    return known


def _liveness(contents: Contents) -> Recognised | None:
    if isinstance(contents, onnx.ModelProto):
        return None
    from mien_server.weights.recognise.minifasnet import minifasnet

    return minifasnet(contents, "")


def _look(
    contents: Contents, path: Path, source: str, wanted: str, *, cropped: bool
) -> list[Recognised]:
    if isinstance(contents, onnx.ModelProto):
        graph = with_shapes(contents).graph
        found = [each for look in GRAPHS if (each := look(graph, path))]
        if has_pytorch():
            from mien_server.weights.recognise.iresnet_graph import iresnet_graph

            own_weights = iresnet_graph(graph)
            found = [own_weights, *found] if own_weights else found
        if cropped and not found and (said := embedder_of(graph, path)):
            found.append(said)
        asked_for = named(graph, path, wanted) if wanted else None
        if asked_for:
            found.append(asked_for)
        if found:
            return found
        raise WeightsError(unknown_graph(graph))
    from mien_server.weights.recognise.own_networks import own
    from mien_server.weights.recognise.state_dict_kinds import STATE_DICTS, unknown_state_dict

    if found := [each for look in STATE_DICTS if (each := look(contents, source))]:
        return found
    if ours := own(contents):
        return [ours]
    raise WeightsError(unknown_state_dict(contents))
