"""OpenVINO and onnxruntime report to nobody: each would, left to itself."""

import subprocess
import sys
from pathlib import Path

import pytest

_OPENVINO = """
import os, socket, subprocess, sys
from pathlib import Path

def refuse(*_, **__):
    raise AssertionError("something was to leave this process")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.create_connection = subprocess.Popen = os.fork = refuse

import numpy as np

from mien_server.backends.devices import CpuDevice
from mien_server.backends.openvino import load
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.roles import EmbedderOptions, EmbedderRow

instance = load(
    find_family("sface"),
    Path(sys.argv[1]) / "sface" / "1" / "model.safetensors",
    normalisation=Normalisation("RGB", (0.0, 0.0, 0.0), 1.0),
    options=EmbedderOptions(),
    precision="auto",
    device=CpuDevice(),
    sides=(112,),
    max_batch_size=4,
)
rows = [EmbedderRow(np.zeros((112, 112, 3), np.uint8))]
assert instance.split(instance.compute(instance.collate(rows)), rows)[0].shape == (128,)
instance.close()

import openvino

assert not hasattr(openvino, "convert_model"), "its converter is what reports"
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
held = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
print([os.readlink(each) for each in held if each.is_socket()])
"""


_ONNXRUNTIME = """
import os, sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from mien_server.backends.devices import CpuDevice
from mien_server.backends.onnx_sessions import CpuSessions

edge = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["y"])],
    "graph",
    [edge("x", TensorProto.FLOAT, [1])],
    [edge("y", TensorProto.FLOAT, [1])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
CpuSessions(model.SerializeToString(), CpuDevice())
print([])
held = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
print([os.readlink(each) for each in held if each.is_socket()])
"""


@pytest.mark.parametrize("program", [_OPENVINO, _ONNXRUNTIME], ids=["openvino", "onnxruntime"])
def test_nothing_is_sent_started_or_written(
    model_repository_path: Path, tmp_path: Path, program: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, model_repository_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert (done.returncode, done.stdout.split()) == (0, ["[]", "[]"]), done.stderr
    assert list(tmp_path.iterdir()) == []
