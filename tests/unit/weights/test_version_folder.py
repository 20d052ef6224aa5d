"""What is written into a version folder is what was given, however it lay in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mien_server.weights.write.version_folder import write_tensors


def test_tensors_are_written_as_they_are_read_whatever_their_order_in_memory(
    tmp_path: Path,
) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "every second": np.arange(6, dtype=np.float32)[::2],
        "without axes": np.array(7, np.int64),
    }
    write_tensors(tmp_path / "model.safetensors", tensors)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert written[key].shape == tensor.shape, key
        assert written[key].dtype == tensor.dtype, key
        np.testing.assert_array_equal(written[key], tensor)


def test_they_are_the_bytes_that_pytorch_s_writer_makes(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.ones(2, 3), "a.bias": torch.zeros(3), "a.count": torch.tensor(0)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", {key: tensor.numpy() for key, tensor in tensors.items()})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
