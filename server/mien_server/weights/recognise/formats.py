"""Reads checkpoint files as data, known by their content: nothing that a file contains is executed."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from google.protobuf.message import DecodeError

from mien_server.backends.devices import NO_PYTORCH, has_pytorch
from mien_server.backends.onnx_graph import read_graph
from mien_server.backends.weights_file import LoadError
from mien_server.weights.errors import AGAIN, WeightsError

Contents: TypeAlias = Mapping[Any, Any] | onnx.ModelProto
"""What a PyTorch or safetensors file holds (tensors by name, perhaps in wrappers), or an ONNX model."""

MAX_BYTES = 4 << 30
"""The largest checkpoint that is read, and the most that an archive may unpack to.

An IResNet-100 has a quarter of a GiB.
"""

_ZIP = b"PK\x03\x04"
_OTHERS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml)", f"a web page that was saved in place of the file: {AGAIN}"),
    (rb"\x89HDF", "an HDF5 (Keras) file: export the network to ONNX and import that"),
    (
        rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|.{257}ustar",
        "a compressed archive: unpack it first",
    ),
    (rb"\x93NUMPY", "a NumPy array: a PyTorch, safetensors or ONNX file is needed"),
)


def read(path: Path) -> Contents:
    """Reads a PyTorch (`torch.save`), safetensors or ONNX file, whatever its name.

    Raises:
        WeightsError: it is none of them, is damaged, too large or needs code to be run.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if not size:
        raise WeightsError(f"{path.name} is empty: {AGAIN}")
    if size > MAX_BYTES:
        raise WeightsError(f"{path.name} has {size:,} bytes, more than the {MAX_BYTES:,} allowed")
    with path.open("rb") as file:
        head = file.read(512)
    # First, because the length that a safetensors file begins with may look like anything else.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        _need_pytorch(path, "a safetensors file")
        from mien_server.weights.recognise.torch_files import read_safetensors

        return read_safetensors(path)
    for pattern, problem in _OTHERS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise WeightsError(f"{path.name} is {problem}")
    if head.startswith(_ZIP):
        _check_torch_archive(path)
    if head.startswith((_ZIP, pickle.PROTO)):  # the latter of PyTorch before version 1.6
        _need_pytorch(path, "a PyTorch checkpoint")
        from mien_server.weights.recognise.torch_files import read_torch

        return read_torch(path, mmap=head.startswith(_ZIP))
    if head.startswith(b"\x08"):  # the field `ir_version`, with which every ONNX writer begins
        return _read_onnx(path)
    raise WeightsError(
        f"{path.name} is no PyTorch, safetensors or ONNX file (it begins with {head[:8]!r}): {AGAIN}"
    )


def _need_pytorch(path: Path, what: str) -> None:
    if not has_pytorch():
        raise WeightsError(
            f"{path.name} is {what}. {NO_PYTORCH}. An ONNX file is imported without it"
        )


def is_pack(path: Path) -> bool:
    """Whether a file is a zip archive of other files, unlike those that `torch.save` writes.

    Raises:
        WeightsError: it is a damaged zip archive.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return False
    return not any(Path(name).name == "data.pkl" for name in _members(path))


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path.name} is damaged or was cut short ({error}): {AGAIN}") from error


def _check_torch_archive(path: Path) -> None:
    members = _members(path)
    names = {Path(name).name for name in members}
    if "constants.pkl" in names:
        raise WeightsError(
            f"{path.name} is a TorchScript archive, which holds code, and none is executed here: where you"
            " trust it, load it with torch.jit.load and torch.save its state_dict()"
        )
    if "data.pkl" not in names:
        raise WeightsError(f"{path.name} is an archive of other files: import those by themselves")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise WeightsError(
            f"{path.name} was packed by another program than torch.save (its members are compressed):"
            " unpack it and import the checkpoint that is in it"
        )


def _read_onnx(path: Path) -> onnx.ModelProto:
    try:
        read_graph(path)  # for its checks: what it returns is changed for onnxruntime
    except LoadError as error:
        if isinstance(error.__cause__, DecodeError):
            raise WeightsError(f"{path.name} is damaged or was cut short: {AGAIN}") from error
        raise WeightsError(str(error)) from error
    return onnx.ModelProto.FromString(path.read_bytes())
