"""The shortest valid configurations, and a reader for variations of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mien_server.repository.config import ModelConfig, read_config

_EMBEDDER = """\
name: "model"
backend: "pytorch"
max_batch_size: 8
dynamic_batching { }
input [ { name: "face" data_type: TYPE_UINT8 dims: [ 3, 112, 112 ] } ]
output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 128 ] } ]
parameters { key: "architecture" value { string_value: "sface" } }
parameters { key: "channel_order" value { string_value: "RGB" } }
parameters { key: "mean" value { string_value: "127.5" } }
parameters { key: "scale" value { string_value: "1/128" } }
"""

_DETECTOR = """\
backend: "pytorch"
max_batch_size: 4
input [ { name: "image" data_type: TYPE_UINT8 dims: [ 3, -1, -1 ] } ]
output [
  { name: "boxes" data_type: TYPE_FP32 dims: [ -1, 4 ] },
  { name: "scores" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "landmarks" data_type: TYPE_FP32 dims: [ -1, 5, 2 ] }
]
parameters: [
  { key: "architecture", value: { string_value: "retinaface_mobilenet0.25" } },
  { key: "channel_order", value: { string_value: "BGR" } },
  { key: "mean", value: { string_value: "104, 117, 123" } },
  { key: "scale", value: { string_value: "1" } },
  { key: "buckets", value: { string_value: "320,640" } }
]
"""


@pytest.fixture
def embedder() -> str:
    """The shortest embedder; 10 lines."""
    return _EMBEDDER


@pytest.fixture
def detector() -> str:
    """The shortest detector; 15 lines."""
    return _DETECTOR


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], ModelConfig]:
    """Reads a text as the config.pbtxt of a model named "model"."""

    def parse(text: str) -> ModelConfig:
        path = tmp_path / "model" / "config.pbtxt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return read_config(path)

    return parse
