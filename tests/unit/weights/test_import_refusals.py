"""Bad checkpoints: each is refused with what to do about it, nothing runs, what serves is untouched."""

import io
import os
import pickle
import shutil
import stat
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused, import_weights
from mien_server.weights.progress import Progress
from mien_server.weights.write.version_folder import turn
from tests.unit.weights.conftest import CONFIGS, Import
from tests.unit.weights.onnx_files import one_layer, saved, scrfd
from tests.unit.weights.public_networks import shared_network

Make = Callable[[Path], object]

_HEAD = "ClassHead.0.conv1x1.weight"
_VARIANCE = "fpn.output1.1.running_var"


class Payload:
    """What it does on being unpickled is to make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def state() -> dict[str, Tensor]:
    return dict(shared_network("retinaface_mobilenet0.25").state_dict())


def trace_of(path: Path) -> Path:
    return path.with_name("trace")


def bytes_of(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def torch_file(contents: object) -> Make:
    return lambda path: torch.save(contents, path)


def changed(**values: Tensor | None) -> Make:
    """A checkpoint with some tensors replaced (double underscores for dots) or, for None, left out."""

    def make(path: Path) -> None:
        named = {key.replace("__", "."): value for key, value in values.items()}
        merged: dict[str, Any] = {**state(), **named}
        torch.save({key: value for key, value in merged.items() if value is not None}, path)

    return make


def with_value(key: str, value: float, dtype: torch.dtype = torch.float32) -> Make:
    def make(path: Path) -> None:
        tensors = state()
        tensors[key] = tensors[key].to(dtype, copy=True)
        tensors[key].view(-1)[0] = value
        torch.save(tensors, path)

    return make


def as_type(convert: Callable[[Tensor], Tensor]) -> Make:
    return lambda path: torch.save({**state(), _HEAD: convert(state()[_HEAD])}, path)


def truncated(make: Make) -> Make:
    def cut(path: Path) -> None:
        make(path)
        os.truncate(path, path.stat().st_size // 2)

    return cut


def old_format(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def safetensors_file(path: Path) -> None:
    save_file(state(), path)


def two_networks(path: Path) -> None:
    teacher = {f"module.{key}": value for key, value in state().items()}
    torch.save({"student": state(), "teacher": teacher}, path)


def something_beside(path: Path) -> None:
    detector = {f"detector.{key}": value for key, value in state().items()}
    torch.save(detector | {"gaze.w": torch.zeros(2)}, path)


def keys(*names: str, shape: tuple[int, ...] = (4, 4)) -> Make:
    return lambda path: torch.save({name: torch.zeros(shape) for name in names}, path)


def with_payload(path: Path) -> None:
    torch.save({**state(), "extra": Payload(trace_of(path))}, path)


def old_with_payload(path: Path) -> None:
    contents = {**state(), "extra": Payload(trace_of(path))}
    torch.save(contents, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(trace_of(path))))


def payload_called_safetensors(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": Payload(trace_of(path))}, protocol=4))


def torchscript(path: Path) -> None:
    script = torch.jit.script(nn.Conv2d(3, 4, 1))
    torch.jit.save(script, path)


def repacked(path: Path) -> None:
    torch.save(state(), path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    zipped(members)(path)


def zipped(members: Mapping[str, bytes]) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)

    return make


def zip_with_link(path: Path) -> None:
    info = zipfile.ZipInfo("backbone.pth")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "../../secret")


def patched_zip(offset: int, value: bytes) -> Make:
    """An archive of two files whose entries in the directory are overwritten at an offset."""

    def make(path: Path) -> None:
        zipped({"a.bin": bytes(1000), "b.bin": bytes(1000)})(path)
        data = bytearray(path.read_bytes())
        start = data.find(b"PK\x01\x02")
        while start >= 0:
            data[start + offset : start + offset + len(value)] = value
            start = data.find(b"PK\x01\x02", start + 4)
        path.write_bytes(data)

    return make


def onnx_with(**attributes: Any) -> Make:
    """A graph with one operator more, of which the attributes are given."""

    def make(path: Path) -> None:
        one_layer(path, ["n", 3, 112, 112], 128)
        model = onnx.load(path)
        domain = attributes.pop("domain", "")
        model.graph.node.append(
            helper.make_node("Constant", [], ["c"], domain=domain, **attributes)
        )
        path.write_bytes(model.SerializeToString())

    return make


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def onnx_with_external_weights(path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    saved(helper.make_graph([node], "g", [x], [y], [external("w")]), path)


def onnx_with_nan(path: Path) -> None:
    one_layer(path, ["n", 3, 112, 112], 128)
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path.write_bytes(model.SerializeToString())


IRESNET_200 = keys(
    "layer1.0.prelu.weight", *(f"layer3.{index}.prelu.weight" for index in range(97))
)
TFACE = keys("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.0.weight")
QUANTISED = as_type(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8))
HUGE = as_type(lambda _: torch.zeros(1).expand(1 << 20, 1 << 20))
HTML = b"<!DOCTYPE html><html><title>Sign in</title></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 174\n"

AGAIN = "download it again"
CODE = "can only be read by running code .*nothing of it was executed.*plain state_dict"

BAD: dict[str, tuple[Make, str]] = {
    "empty": (bytes_of(b""), f"is empty: .*{AGAIN}"),
    "noise": (bytes_of(bytes(range(7, 207)) * 9), f"no PyTorch, safetensors or ONNX.*{AGAIN}"),
    "text": (bytes_of(b"the weights are on my other machine"), "no PyTorch, safetensors or ONNX"),
    "web page": (bytes_of(HTML), f"is a web page .*{AGAIN}"),
    "LFS pointer": (bytes_of(LFS), "is a Git LFS pointer.*git lfs pull"),
    "Keras": (bytes_of(b"\x89HDF\r\n\x1a\n" + bytes(99)), r"is an HDF5 \(Keras\).*to ONNX"),
    "gzip": (bytes_of(b"\x1f\x8b\x08" + bytes(99)), "is a compressed archive: unpack it"),
    "tar": (bytes_of(bytes(257) + b"ustar" + bytes(250)), "is a compressed archive: unpack it"),
    "NumPy": (bytes_of(b"\x93NUMPY\x01\x00" + bytes(99)), "is a NumPy array"),
    "truncated": (truncated(torch_file(state())), f"damaged or was cut short .*{AGAIN}"),
    "truncated, old format": (truncated(old_format), f"cannot be read as a PyTorch.*{AGAIN}"),
    "truncated safetensors": (truncated(safetensors_file), f"cannot be read as safe.*{AGAIN}"),
    "truncated ONNX": (truncated(lambda p: scrfd(p)), f"damaged or was cut short: .*{AGAIN}"),
    "code": (with_payload, CODE),
    "code, old format": (old_with_payload, CODE),
    "bare pickle": (bare_pickle, CODE),
    "pickle called safetensors": (payload_called_safetensors, CODE),
    "whole module": (torch_file(nn.Conv2d(1, 1, 1)), r"running code \(torch\.nn\.modules\.conv"),
    "TorchScript": (torchscript, r"TorchScript archive, which holds code.*torch\.jit\.load"),
    "packed again": (repacked, r"another program than torch\.save.*unpack it"),
    "one tensor": (torch_file(torch.zeros(3)), "none of the networks that mien has"),
    "list": (torch_file([torch.zeros(3)]), r"holds a list, must hold a state_dict"),
    "no tensors": (torch_file({"epoch": 3}), "holds no tensors by name"),
    "NaN": (with_value(_HEAD, float("nan")), f"NaN or infinity in 1 .*{_HEAD}.*another check"),
    "too large for float32": (with_value(_HEAD, 1e300, torch.float64), "NaN or infinity in 1"),
    "negative variance": (with_value(_VARIANCE, -1), f"negative variances in {_VARIANCE}"),
    "int8": (as_type(lambda w: w.to(torch.int8)), f"1 of another type: {_HEAD} is int8"),
    "complex": (as_type(lambda w: w.to(torch.complex64)), "of another type: .* is complex64"),
    "quantised": (QUANTISED, "of another type: .* is cpu .*qint8"),
    "sparse": (as_type(lambda w: w.to_sparse()), "of another type: .*sparse"),
    "without storage": (as_type(lambda w: w.to("meta")), "of another type: .* is meta"),
    "absurd size": (HUGE, r"1 misshaped: .* is \[1048576, 1048576\]"),
    "missing": (
        changed(ssh1__conv3X3__0__weight=None, ssh1__conv3X3__1__weight=None),
        r"not exactly that network's \(2 missing: ssh1\.conv3X3\.0\.weight, ssh1",
    ),
    "left over": (changed(body__extra=torch.zeros(2)), r"1 unexpected: body\.extra.*unchanged"),
    "misshaped": (
        changed(body__stage1__0__0__weight=torch.zeros(16, 3, 3, 3)),
        r"1 misshaped: body\.stage1\.0\.0\.weight is \[16, 3, 3, 3\], must be \[8, 3, 3, 3\]",
    ),
    "two networks": (
        two_networks,
        r"holds 2 networks of that kind, at 'student', 'teacher: module\.'",
    ),
    "something beside": (
        something_beside,
        r"holds 1 other tensors \(gaze\.w\): torch\.save the network",
    ),
    "TFace": (TFACE, r"it is TFace's \(torchkit's\) IR_50.*backbone\.pth or ModelScope"),
    "IResNet-200": (IRESNET_200, "an IResNet of 98 residual blocks, where mien serves iresnet18"),
    "classifier": (keys("layer4.2.conv3.weight", "fc.weight"), "a ResNet-50 classifier"),
    "backbone only": (keys("module.stage1.0.0.weight", "module.fc.weight"), "backbone alone"),
    "FaceNet": (keys("conv2d_1a.conv.weight", "last_linear.weight"), "FaceNet's Inception"),
    "unknown": (keys("encoder.0.weight"), r"holds 1 tensors \(encoder\.0\.weight\).*as ONNX"),
    "zip slip": (zipped({"../evil.pth": b"x"}), "written outside .* nothing of it was unpacked"),
    "zip slip, absolute": (zipped({"/tmp/evil.pth": b"x"}), "written outside"),  # noqa: S108
    "zip slip, Windows": (zipped({"..\\evil.pth": b"x"}), "written outside"),
    "link in a zip": (zip_with_link, "has a link, 'backbone.pth', in it"),
    "zip bomb": (patched_zip(24, struct.pack("<I", 0xFFFFFFF0)), "unpacks to .* unpack it"),
    "zip with passwords": (patched_zip(8, b"\1\0"), "cannot be unpacked here: .*encrypted"),
    "damaged member": (patched_zip(16, b"abcd"), f"damaged or was cut short .*CRC.*{AGAIN}"),
    "zip of nothing": (zipped({"README.md": b"hello"}), "nothing in .* is a checkpoint that mien"),
    "ONNX with weights elsewhere": (
        onnx_with_external_weights,
        "keeps tensor 'w' in another",
    ),
    "ONNX with a constant elsewhere": (
        onnx_with(value=external("c")),
        "keeps tensor 'c' in another file",
    ),
    "ONNX with foreign operators": (
        onnx_with(domain="evil"),
        "operators of evil: only those of ONNX",
    ),
    "ONNX with NaN": (onnx_with_nan, "NaN or infinity in w: .* is damaged"),
    "ONNX of landmarks": (
        lambda path: one_layer(path, ["n", 3, 192, 192], 212),
        r"takes data \[-1, 3, 192, 192\] and gives out \[-1, 212\]: neither an embedder",
    ),
    "ONNX for another model": (
        lambda path: scrfd(path),
        r"is architecture 'scrfd' on backend 'onnxruntime', but .*retinaface/config\.pbtxt says"
        r" architecture 'retinaface_mobilenet0\.25' on backend 'pytorch': import it under another",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a version of the detector that could be serving."""
    root = tmp_path_factory.mktemp("good")
    torch.save(state(), root / "good.pth")
    shutil.copytree(CONFIGS / "retinaface", root / "repository" / "retinaface")
    import_weights(root / "repository", "retinaface", root / "good.pth", Progress(io.StringIO()))
    return root / "repository"


@pytest.fixture
def serving(repository: Path, good: Path) -> Path:
    """The detector's folder with that version in it, where a checkpoint comes in."""
    shutil.copytree(good / "retinaface", repository / "retinaface", dirs_exist_ok=True)
    return repository / "retinaface"


def everything_in(folder: Path) -> dict[str, object]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoint_is_refused_and_what_serves_is_untouched(
    kind: str, tmp_path: Path, serving: Path, bring: Import
) -> None:
    make, message = BAD[kind]
    checkpoint = tmp_path / "incoming" / "weights.safetensors"
    checkpoint.parent.mkdir()
    make(checkpoint)
    before, around = everything_in(serving), {path.name for path in tmp_path.rglob("*")}

    with pytest.raises((WeightsError, ImportRefused), match=message) as refused:
        bring("retinaface", checkpoint)

    assert "weights.safetensors" in str(refused.value), "it says which file"
    assert not trace_of(checkpoint).exists(), "nothing in it was executed"
    assert everything_in(serving) == before
    assert {path.name for path in tmp_path.rglob("*")} == around, "nothing lies anywhere else"


def test_payload_would_have_run_in_a_plain_unpickler(tmp_path: Path) -> None:
    """The tests above could not fail if it did nothing anyway."""
    checkpoint = tmp_path / "weights"
    bare_pickle(checkpoint)
    pickle.loads(checkpoint.read_bytes())  # noqa: S301 - what it does is harmless
    assert trace_of(checkpoint).exists()


def test_variable_that_makes_torch_load_unsafe_has_no_effect(
    tmp_path: Path, bring: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with_payload(tmp_path / "weights")
    with pytest.raises(WeightsError, match=CODE):
        bring("retinaface", tmp_path / "weights")
    assert not trace_of(tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ("sface", "says architecture 'sface' on backend 'pytorch'"),
        ("face_embedding", "an ensemble"),
    ],
)
def test_a_configuration_that_comes_while_it_waits_for_its_turn_is_heeded(
    repository: Path, tmp_path: Path, other: str, problem: str
) -> None:
    torch.save(state(), tmp_path / "detector.pth")
    model, said = repository / "mine", io.StringIO()
    model.mkdir()
    text = (CONFIGS / other / "config.pbtxt").read_text().replace(f'"{other}"', '"mine"', 1)
    with ThreadPoolExecutor(1) as thread:
        with turn(model, Progress(io.StringIO())):
            done = thread.submit(
                import_weights, repository, "mine", tmp_path / "detector.pth", Progress(said)
            )
            while "waiting for" not in said.getvalue():
                assert not done.done()
                time.sleep(0.01)
            (model / "config.pbtxt").write_text(text)
        with pytest.raises(ImportRefused, match=problem):
            done.result(timeout=60)
    assert {path.name for path in model.iterdir()} == {"config.pbtxt", ".install.lock"}
