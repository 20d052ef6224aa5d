"""Models of a few numbers, as whole folders of a repository."""

from datetime import UTC, datetime
from pathlib import Path

import onnx

from mien_server.models.interface import Normalisation
from mien_server.repository.manifest import describe, write_manifest
from mien_server.weights.recognise.recognised import Recognised
from mien_server.weights.write.templates import config_text
from tests import graphs

PIXELS = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)


def add_model(
    root: Path,
    name: str,
    graph: onnx.ModelProto,
    architecture: str,
    normalisation: Normalisation,
    *,
    dimensions: int = 0,
    side: int = 0,
) -> Path:
    """A model on onnxruntime with one version; its folder."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    weights = graphs.save(graph, folder)
    kind = Recognised(
        title=name,
        backend="onnxruntime",
        architecture=architecture,
        weights=weights,
        tensors=0,
        parameters=0,
        normalisation=normalisation,
        license="none",
        dimensions=dimensions,
        batch=4,
        side=side,
    )
    config = root / name / "config.pbtxt"
    config.write_text(config_text(name, kind, license_="none", source="test"))
    about = {"source": "test", "license_": "none", "importer": "pytest"}
    write_manifest(folder, describe(folder, created=datetime.now(UTC), **about))
    return root / name
