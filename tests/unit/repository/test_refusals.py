"""What must not be loaded is refused, and the index says why."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mien_server.errors import ModelNotFound
from mien_server.repository import loading
from mien_server.repository.manifest import verify_version
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    add_version,
    configure,
    reason,
    seal,
)


@pytest.mark.parametrize(
    "name", ["../sface", "..", ".", "", "/etc", "sface/1", "sface\0", "nobody"]
)
def test_name_is_no_path(root: Path, open_repository: Open, name: str) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    with pytest.raises(ModelNotFound, match="the models are: arcface, retinaface, sface"):
        repository.loader.load(name).result(SECONDS)
    with pytest.raises(ModelNotFound):
        repository.loader.unload(name).result(SECONDS)


def test_linked_model_outside_of_the_repository_is_refused(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    (root / "sface").rename(tmp_path / "outside")
    (root / "sface").symlink_to(tmp_path / "outside")
    (root / "arcface" / "config.pbtxt").rename(tmp_path / "config.pbtxt")
    (root / "arcface" / "config.pbtxt").symlink_to(tmp_path / "config.pbtxt")
    repository = open_repository()
    for name in ("sface", "arcface"):
        assert "leads out of the repository" in reason(repository, name)


def test_pickle_named_safetensors_is_refused_in_the_index(
    root: Path, open_repository: Open
) -> None:
    folder = add_version(root, "sface", 1)
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    seal(folder)
    assert "cannot be read as safetensors" in reason(open_repository(), "sface", 1)


def test_onnx_for_the_pytorch_backend_is_refused_in_the_index(
    root: Path, open_repository: Open
) -> None:
    folder = add_version(root, "sface", 1)
    (folder / "model.safetensors").rename(folder / "model.onnx")
    seal(folder)
    repository = open_repository()
    assert "does not list model.safetensors" in reason(repository, "sface", 1)


def test_onnx_with_its_data_elsewhere_is_refused_in_the_index(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    configure(root, "sface", 'backend: "pytorch"', 'backend: "onnxruntime"')
    data = np.zeros((4, 3), np.float32)
    (tmp_path / "weights.bin").write_bytes(data.tobytes())
    weights = onnx.numpy_helper.from_array(data, "weights")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=str(tmp_path / "weights.bin"))
    face = onnx.helper.make_tensor_value_info("face", onnx.TensorProto.FLOAT, [None, 3, 112, 112])
    vector = onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, [4, 3])
    node = onnx.helper.make_node("Identity", ["weights"], ["vector"])
    graph = onnx.helper.make_graph([node], "graph", [face], [vector], initializer=[weights])
    folder = root / "sface" / "1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    seal(folder)
    assert "in another file" in reason(open_repository(), "sface", 1)


def test_files_that_change_while_they_are_read_are_not_served(
    root: Path, open_repository: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(root, "sface", 1)
    warm_up = loading.warm_up

    def overwrite(*arguments: Any) -> None:
        warm_up(*arguments)
        add_version(root, "sface", 1, seed=3)

    monkeypatch.setattr(loading, "warm_up", overwrite)
    repository = open_repository(names=("sface",))
    assert "changed while it was being loaded" in reason(repository, "sface", 1)


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (shutil.rmtree, "was removed while it was being loaded: load it again"),
        (
            lambda folder: os.truncate(folder / "model.safetensors", 100),
            "changed while it was being loaded: load it again",
        ),
    ],
)
def test_what_becomes_of_files_after_their_check_is_the_reason(
    root: Path,
    open_repository: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    happens: Callable[[Path], object],
    said: str,
) -> None:
    folder = add_version(root, "sface", 1)

    def verify(*arguments: Any) -> Any:
        manifest = verify_version(*arguments)
        happens(folder)
        return manifest

    monkeypatch.setattr(loading, "verify_version", verify)
    with caplog.at_level(logging.WARNING):
        repository = open_repository(names=("sface",))
    assert reason(repository, "sface", 1) == f"{folder} {said}"
    assert not any(record.exc_info for record in caplog.records)


def test_graph_that_no_manifest_vouches_for_is_refused(root: Path, open_repository: Open) -> None:
    folder = add_version(root, "sface", 1)
    (folder / "graph.onnx").write_bytes(b"of other weights")
    reason_of = reason(open_repository(), "sface", 1)
    assert "graph.onnx is not in the manifest: remove it, or let" in reason_of
    assert "`mien-server models check sface --make-golden`" in reason_of
