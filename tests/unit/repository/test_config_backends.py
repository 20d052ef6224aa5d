"""What `backend` and `platform` of a config.pbtxt decide."""

from collections.abc import Callable

import pytest

from mien_server.models.roles import DETECTOR
from mien_server.repository.config.model import ConfigError, ModelConfig

Read = Callable[[str], ModelConfig]

PYTORCH = 'backend: "pytorch"'


def precision(value: str) -> str:
    return f'parameters {{ key: "precision" value {{ string_value: "{value}" }} }}\n'


@pytest.mark.parametrize(
    "how",
    [
        'backend: "onnxruntime"',
        'platform: "onnxruntime_onnx"',
        'backend: "onnxruntime" platform: "onnxruntime_onnx"',
    ],
)
def test_onnxruntime_by_either_of_its_names(read: Read, embedder: str, how: str) -> None:
    config = read(embedder.replace(PYTORCH, how))
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")


def test_a_detector_without_a_network_in_pytorch(read: Read, detector: str) -> None:
    text = detector.replace(PYTORCH, 'backend: "onnxruntime"')
    config = read(text.replace("retinaface_mobilenet0.25", "scrfd"))
    assert (config.architecture, config.role, config.sides) == ("scrfd", DETECTOR, (320, 640))


@pytest.mark.parametrize(
    ("backend", "value"),
    [
        *(("pytorch", value) for value in ("auto", "fp32", "bf16", "fp16")),
        *(("onnxruntime", value) for value in ("auto", "fp32", "fp16", "int8")),
    ],
)
def test_precisions_of_each_backend(read: Read, embedder: str, backend: str, value: str) -> None:
    text = embedder.replace("pytorch", backend) + precision(value)
    assert read(text).precision == value


@pytest.mark.parametrize(
    ("backend", "added", "problem"),
    [
        ('platform: "tensorrt_plan"', "", r'platform: is .*must be "onnxruntime_onnx"'),
        (PYTORCH + ' platform: "onnxruntime_onnx"', "", "platform: does not fit backend 'pytorch'"),
        ('backend: "onnx"', "", 'backend: is .*must be "pytorch", "onnxruntime" or "openvino"'),
        (PYTORCH, precision("int8"), "precision: is 'int8'; must be one of auto, fp32, bf16, fp16"),
        ('backend: "onnxruntime"', precision("bf16"), "must be one of auto, fp32, fp16, int8"),
        (PYTORCH, 'default_model_filename: "m.onnx"', "'pytorch' it must be a .safetensors file"),
        (
            'backend: "onnxruntime"',
            'default_model_filename: "m.safetensors"',
            "'onnxruntime' it must be a .onnx file",
        ),
        (
            'backend: "onnxruntime"',
            'default_model_filename: "../m.onnx"',
            "must be a .onnx file in the version folder",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(
    read: Read, embedder: str, backend: str, added: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(embedder.replace(PYTORCH, backend) + added)
