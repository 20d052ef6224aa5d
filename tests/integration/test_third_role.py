"""A third role comes with a package of its own and one config.pbtxt: nothing of mien is edited for it."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc.aio as tritonclient
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from mien_server.commands.main import main
from mien_server.engine import build_engine
from mien_server.errors import InvalidRequest
from mien_server.models.families import BrokenPackage, families, roles
from mien_server.models.roles import EMBEDDER
from mien_server.observability.call_metrics import CallMetrics
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.model import read_config
from mien_server.repository.config.pbtxt import ConfigError
from mien_server.repository.golden import FILENAME as GOLDEN
from mien_server.repository.versions import State
from mien_server.rpc.faces import FaceService
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import RpcServer
from mien_server.settings import Settings
from mien_server.triton.service import InferenceService
from tests.unit.repository.folders import parameter, seal, traffic

CONFIG = """\
name: "colours"
backend: "pytorch"
max_batch_size: 4
version_policy { all { } }
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 20000000 }
input [ { name: "crop" data_type: TYPE_UINT8 dims: [ 3, 112, 112 ] } ]
output [ { name: "colour" data_type: TYPE_FP32 dims: [ 3 ] } ]
parameters { key: "architecture" value { string_value: "mean_colour" } }
parameters { key: "precision" value { string_value: "fp32" } }
parameters { key: "channel_order" value { string_value: "RGB" } }
parameters { key: "mean" value { string_value: "0" } }
parameters { key: "scale" value { string_value: "1" } }
parameters { key: "gain" value { string_value: "0.5" } }
model_warmup {
  name: "two crops" batch_size: 2
  inputs { key: "crop" value { data_type: TYPE_UINT8 dims: [ 3, 112, 112 ] zero_data: true } }
}
"""


def install(folder: Path, module: str, value: str) -> None:
    """Makes a module of the folder an installed package that offers families."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mien.families]\ncolours = {value}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into; families are looked up anew, then and afterwards."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for cached in (families, roles):
        cached.cache_clear()
    yield folder
    for cached in (families, roles):
        cached.cache_clear()
    for name in ("mean_colour", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def installed(packages: Path) -> Path:
    """The package with the third role."""
    shutil.copy(Path(__file__).with_name("mean_colour.py"), packages)
    install(packages, "mean_colour", "mean_colour:FAMILIES")
    return packages


@pytest.fixture
def root(installed: Path, tmp_path: Path) -> Path:
    """A repository with two versions: the means themselves, and those of a brighter red."""
    root = tmp_path / "repository"
    (root / "colours").mkdir(parents=True)
    (root / "colours" / "config.pbtxt").write_text(CONFIG)
    add_version(root, 1, 1.0, 1.0, 1.0)
    add_version(root, 2, 1.1, 1.0, 1.0)
    return root


def add_version(root: Path, version: int, *weight: float) -> Path:
    folder = root / "colours" / str(version)
    folder.mkdir()
    save_file({"weight": torch.tensor(weight)}, folder / "model.safetensors")
    seal(folder)
    return folder


class Served:
    """The repository behind Triton's service, and a client of it."""

    def __init__(self, models: Catalogue, address: str) -> None:
        self.models = models
        self.client = tritonclient.InferenceServerClient(address)

    async def means(self, *colours: tuple[int, int, int], version: str = "") -> Any:
        """What the model says of crops, each of one colour: [n, 3]."""
        pixels = np.empty((len(colours), 3, 112, 112), np.uint8)
        pixels[:] = np.array(colours, np.uint8)[:, :, None, None]
        tensor = InferInput("crop", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        answer = await self.client.infer("colours", [tensor], model_version=version)
        return answer.as_numpy("colour")

    def states(self) -> dict[int, State]:
        return {status.version: status.state for status in self.models.statuses()}

    def reason(self, version: int) -> str:
        return next(s.reason for s in self.models.statuses() if s.version == version)


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[Served]:
    """Everything between the wire and the network, as a server has it."""
    settings = Settings(model_repository=(root,), cpu_cores=1, default_embedder="colours")
    with ExitStack() as closing:
        engine = build_engine(settings)
        closing.callback(engine.close)
        models, pipeline = engine.catalogue, engine.pipeline
        await asyncio.to_thread(engine.loader.start)
        intake = Intake(max_calls=100, max_bytes=1 << 26)
        metrics = CallMetrics(CollectorRegistry())
        server = RpcServer(
            address=IPv4Address("127.0.0.1"),
            port=0,
            max_message_bytes=1 << 26,
            intake=intake,
            metrics=metrics,
        )
        service = InferenceService(
            models,
            engine.loader,
            pipeline,
            engine.pool,
            intake,
            metrics,
            ready=lambda: server.ready,
            default_deadline=30,
        )
        await server.start(
            FaceService(pipeline, default_deadline=30), inference=service, reflect=False
        )
        intake.open()
        await server.set_ready(True)
        served = Served(models, server.address)
        try:
            yield served
        finally:
            await served.client.close()
            await server.close()


async def test_it_is_served_by_versions_and_described(root: Path) -> None:
    async with serving(root) as served:
        assert served.states() == {1: State.READY, 2: State.READY}
        described = await served.client.get_model_metadata("colours")
        assert list(described.versions) == ["1", "2"]
        assert [(t.name, list(t.shape)) for t in described.outputs] == [("colour", [-1, 3])]
        four = [(10, 20, 30), (0, 0, 0), (255, 0, 1), (2, 4, 6)]
        np.testing.assert_allclose(
            await served.means(*four, version="1"), np.array(four) * 0.5, rtol=1e-5
        )
        latest = await served.means(*four)
        np.testing.assert_allclose(latest, np.array(four) * (0.55, 0.5, 0.5), rtol=1e-5)
        tensor = InferInput("crop", [1, 3, 64, 64], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, 3, 64, 64), np.uint8))
        with pytest.raises(InferenceServerException, match=r"must be \[-1, 3, 112, 112\]"):
            await served.client.infer("colours", [tensor])


async def test_calls_share_a_batch(root: Path) -> None:
    async with serving(root) as served:
        answers = await asyncio.gather(
            *(served.means((8 * n, 0, 0), version="1") for n in range(4))
        )
        np.testing.assert_allclose(np.concatenate(answers)[:, 0], [0, 4, 8, 12], rtol=1e-5)
        (stats,) = (await served.client.get_inference_statistics("colours", "1")).model_stats
        assert (stats.inference_count, stats.execution_count) == (4, 1)


async def test_it_is_warmed_up_and_its_first_result_is_looked_at(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    add_version(root, 3, 1.0, -1.0, 1.0)
    async with serving(root) as served:
        assert served.states()[3] is State.UNAVAILABLE
        assert served.reason(3) == "the mean of channel 1 is negative"
    warmed = [text for text in caplog.messages if "warm-up 'two crops', 2 rows of 112 px" in text]
    assert len(warmed) == 2


async def test_a_shadow_is_judged_by_it(root: Path) -> None:
    parameter(root, "colours", "shadow_version", 2)
    async with serving(root) as served:
        same, other = (0, 50, 60), (200, 50, 60)
        np.testing.assert_allclose(
            await served.means(same, other, same, same), np.array([same, other, same, same]) * 0.5
        )
        async with asyncio.timeout(20):
            while not (shadows := traffic(served.models, "colours").shadows):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (shadows[2].compared, shadows[2].agreed) == (4, 3)


async def held_to_golden_files(root: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that the model `colours`, so configured, serves no version that its golden file belies."""

    def check(*flags: str) -> tuple[int, Any]:
        status = main(
            ["models", "check", "colours", "--json", "--model-repository", str(root), *flags]
        )
        return status, json.loads(capsys.readouterr().out)

    config = root / "colours" / "config.pbtxt"
    config.write_text(re.sub(r"batch_size: (\d|\[ \d \])", "batch_size: 1", text))  # quickly timed
    for version in ("1", "2"):
        status, report = await asyncio.to_thread(check, "--version", version, "--make-golden")
        assert (status, report["passed"]) == (0, True)
    # Version 2, which says something else, with the golden file of version 1.
    shutil.copy(root / "colours" / "1" / GOLDEN, root / "colours" / "2" / GOLDEN)
    seal(root / "colours" / "2")
    assert (await asyncio.to_thread(check, "--version", "2"))[0] == 1
    async with serving(root) as served:
        assert served.states() == {1: State.READY, 2: State.UNAVAILABLE}
        assert "to the golden file, below the bound of 0.99999" in served.reason(2)


@pytest.mark.usefixtures("quickly_measured")
async def test_versions_are_held_to_their_golden_files(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await held_to_golden_files(root, CONFIG, capsys)  # version 2's red is a tenth too bright


async def test_other_roles_do_not_take_it_for_theirs(root: Path) -> None:
    async with serving(root) as served:
        with pytest.raises(InvalidRequest) as caught, served.models.lease("colours", role=EMBEDDER):
            pass
        assert caught.value.message == (
            "model 'colours' is a model of colours, where an embedding model is needed: none is loaded"
        )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"0.5"', '"3"', "gain: is 3; must be in [0, 2]"),
        ("gain", "buckets", "buckets: has no meaning for mean_colour; remove it"),
        ("dims: [ 3 ]", "dims: [ 4 ]", "is [4]; must be [3]"),
    ],
)
def test_its_parameters_and_tensors_are_checked(
    root: Path, old: str, new: str, problem: str
) -> None:
    path = root / "colours" / "config.pbtxt"
    path.write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("source", "value", "problem"),
    [
        ("raise RuntimeError('no such device')", "broken:FAMILIES", "RuntimeError: no such device"),
        ("", "broken:FAMILIES", "AttributeError"),
        ("", "nowhere:FAMILIES", "ModuleNotFoundError"),
        ("FAMILIES = (3,)", "broken:FAMILIES", "3 is no family: it lacks name, role, network"),
        (
            "from mien_server.models.sface import FAMILIES",
            "broken:FAMILIES",
            "there is an architecture 'sface' already",
        ),
        (
            "from mien_server.models.roles import Embedder\n"
            "class Family:\n"
            "    name, role, network, arrange, results = 'mine', Embedder(), 0, 0, 0",
            "broken:Family",
            "there is a role 'embed' already",
        ),
    ],
)
def test_a_package_whose_families_cannot_be_used_is_named(
    packages: Path, source: str, value: str, problem: str
) -> None:
    (packages / "broken.py").write_text(source)
    install(packages, "broken", value)
    with pytest.raises(BrokenPackage) as caught:
        families()
    assert "the installed package broken offers" in str(caught.value)
    assert problem in str(caught.value)
