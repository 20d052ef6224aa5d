"""Two small models for unit tests: `colours` embeds colours, `bright` sees two faces in what is bright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mien_server.evaluation.loaded import LoadedModels, load_models
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.pipeline.types import ModelRef
from mien_server.settings import Settings
from tests import graphs
from tests.integration.test_onnx_scrfd import INPUT, scrfd
from tests.small_models import PIXELS, add_model
from tests.unit.models.scrfd_outputs import SIDE

THRESHOLD = 0.9


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both models. Nobody changes it."""
    root = tmp_path_factory.mktemp("small_models")
    colours = add_model(root, "colours", graphs.embedder(), "embedder", PIXELS, dimensions=8)
    with (colours / "config.pbtxt").open("a") as config:
        threshold = f'{{ string_value: "{THRESHOLD}" }}'
        config.write(f'parameters {{ key: "match_threshold", value: {threshold} }}\n')
    add_model(root, "bright", scrfd(batched=True), "scrfd", INPUT, side=SIDE)
    return root


@pytest.fixture
def repository(small_models: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(small_models, tmp_path / "models"))


@pytest.fixture(scope="session")
def loaded(small_models: Path) -> Iterator[LoadedModels]:
    """Both models, in this process."""
    wanted: dict[AnyRole, ModelRef] = {EMBEDDER: ModelRef("colours"), DETECTOR: ModelRef("bright")}
    with load_models(Settings(model_repository=(small_models,)), wanted) as models:
        yield models
