"""The shortest valid configurations, and a reader for variations of them."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.repository import instances
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.loader import ControlMode, Loader
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.repository.folders import ARCHITECTURES, NETWORKS, Open, Opened, configure

SHIPPED = Path(__file__).resolve().parents[3] / "model_repository"

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
        config = read_config(path)
        assert isinstance(config, ModelConfig)
        return config

    return parse


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The shipped configurations, without weights, and quick to load."""
    root = tmp_path / "repository"
    for name in ARCHITECTURES:
        (root / name).mkdir(parents=True)
        text = (SHIPPED / name / "config.pbtxt").read_text()
        (root / name / "config.pbtxt").write_text(text[: text.index("model_warmup")])
    configure(root, "retinaface", '"320, 640, 1024"', '"64, 128"')
    # Random weights find faces everywhere, which would take long to sort out.
    configure(root, "retinaface", '"0.5"', '"1"')
    return root


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of SFace are small."""
    monkeypatch.setattr(instances, "find_family", NETWORKS.__getitem__)


@pytest.fixture
def scheduler(device: CpuDevice) -> Iterator[Scheduler]:
    """A real one, on one core."""
    scheduler = Scheduler([device])
    yield scheduler
    scheduler.close()


@pytest.fixture
def device() -> CpuDevice:
    """One core of the processor."""
    return CpuDevice(1)


@pytest.fixture
def open_repository(root: Path, scheduler: Scheduler, device: CpuDevice) -> Iterator[Open]:
    """Loads everything, or the models named, in a repository that is closed at the end."""
    opened: list[Loader] = []

    def load(
        *paths: Path,
        mode: ControlMode = "explicit",
        names: tuple[str, ...] | None = None,
        installable: tuple[str, ...] = (),
        seed: int = 0,
    ) -> Opened:
        catalogue = Catalogue(random.Random(seed))  # noqa: S311
        loader = Loader(
            catalogue,
            paths or [root],
            scheduler,
            [device],
            mode=mode,
            installable=installable,
        )
        opened.append(loader)
        loader.start(names)
        return Opened(catalogue, loader)

    yield load
    for loader in opened:
        assert loader.close(timeout=60)
