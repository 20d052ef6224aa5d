"""An analyser is one config.pbtxt and one file of weights, and served in every way that models are."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from tritonclient.grpc import InferInput, InferRequestedOutput

from mien_server.commands.main import main
from mien_server.errors import InvalidRequest, ModelNotReady
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.types import AlignedFace, Call, ModelRef, PhotoFaces, RawPixels
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.config.pbtxt import ConfigError
from mien_server.repository.golden import FILENAME as GOLDEN
from mien_server.repository.versions import State
from tests import graphs
from tests.integration.repository_rig import LARGEST, SECONDS, Rig, open_rig
from tests.integration.test_third_role import Served, held_to_golden_files, serving
from tests.unit.repository.folders import parameter, seal, traffic

SIDE = 16
CONFIG = """\
name: "colours"
backend: "onnxruntime"
max_batch_size: 4
version_policy { all { } }
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 1000 }
input [ { name: "crop" data_type: TYPE_UINT8 dims: [ 3, 16, 16 ] } ]
output [ { name: "chances" data_type: TYPE_FP32 dims: [ 3 ] } ]
parameters { key: "architecture" value { string_value: "analyser" } }
parameters { key: "answer" value { string_value: "classification" } }
parameters { key: "labels" value { string_value: "red, green, blue" } }
parameters { key: "activation" value { string_value: "softmax" } }
parameters { key: "channel_order" value { string_value: "RGB" } }
parameters { key: "mean" value { string_value: "0" } }
parameters { key: "scale" value { string_value: "1/255" } }
"""


def means(bias: tuple[float, ...] = (0, 0, 0), channels: int = 3) -> onnx.ModelProto:
    """A graph that gives the mean of each channel, plus something."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["values"]),
    ]
    return graphs.model(
        nodes,
        {"bias": np.array(bias, np.float32)},
        inputs={"pixels": ["n", channels, SIDE, SIDE]},
        outputs={"values": ["n", len(bias)]},
    )


def softmax(values: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(values)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


def add_version(root: Path, version: int, graph: onnx.ModelProto) -> Path:
    folder = root / "colours" / str(version)
    folder.mkdir(parents=True)
    graphs.save(graph, folder)
    seal(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two versions: which colour a crop has most of, and the same that prefers red a little."""
    root = tmp_path / "repository"
    add_version(root, 1, means())
    add_version(root, 2, means((0.3, 0, 0)))
    (root / "colours" / "config.pbtxt").write_text(CONFIG)
    return root


async def ask(served: Served, *colours: tuple[int, int, int], version: str = "") -> NDArray[Any]:
    """What the model says of crops, each of one colour: [n, 3]."""
    pixels = np.empty((len(colours), 3, SIDE, SIDE), np.uint8)
    pixels[:] = np.array(colours, np.uint8)[:, :, None, None]
    tensor = InferInput("crop", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answer = await served.client.infer("colours", [tensor], model_version=version)
    return np.asarray(answer.as_numpy("chances"))


async def test_it_is_served_by_versions_and_described(root: Path) -> None:
    async with serving(root) as served:
        assert served.states() == {1: State.READY, 2: State.READY}
        described = await served.client.get_model_metadata("colours")
        assert list(described.versions) == ["1", "2"]
        assert [(t.name, list(t.shape)) for t in described.outputs] == [("chances", [-1, 3])]
        four = [(10, 20, 30), (0, 0, 0), (255, 0, 1), (2, 4, 6)]
        expected = softmax(np.array(four) / 255)
        np.testing.assert_allclose(await ask(served, *four, version="1"), expected, atol=1e-6)
        latest = softmax(np.array(four) / 255 + (0.3, 0, 0))
        np.testing.assert_allclose(await ask(served, *four), latest, atol=1e-6)


@pytest.mark.parametrize("labels", ["parameter", "file"])
async def test_its_classes_are_told_as_triton_tells_them(root: Path, labels: str) -> None:
    config = root / "colours" / "config.pbtxt"
    if labels == "file":
        text = re.sub(r".*labels.*\n", "", CONFIG)
        config.write_text(text.replace("[ 3 ] }", '[ 3 ] label_filename: "labels.txt" }'))
        (root / "colours" / "labels.txt").write_text("red\ngreen\nblue\n")
    pixels = np.zeros((2, 3, SIDE, SIDE), np.uint8)
    pixels[0, 2], pixels[1, 1], pixels[1, 0] = 255, 255, 51
    tensor = InferInput("crop", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    async with serving(root) as served:
        asked = [InferRequestedOutput("chances", class_count=2)]
        answer = await served.client.infer("colours", [tensor], outputs=asked, model_version="1")
        plain = await served.client.infer("colours", [tensor], model_version="1")
    assert answer.get_output("chances").datatype == "BYTES"
    chances, told = plain.as_numpy("chances"), answer.as_numpy("chances")
    assert told.tolist() == [
        [f"{chances[0, 2]:f}:2:blue".encode(), f"{chances[0, 0]:f}:0:red".encode()],
        [f"{chances[1, 1]:f}:1:green".encode(), f"{chances[1, 0]:f}:0:red".encode()],
    ]


async def test_calls_share_a_batch_and_are_counted(root: Path) -> None:
    config = root / "colours" / "config.pbtxt"
    patient = config.read_text().replace("microseconds: 1000 ", "microseconds: 20000000 ")
    config.write_text(patient)
    async with serving(root) as served:
        answers = await asyncio.gather(
            *(ask(served, (60 * n, 0, 0), version="1") for n in range(4))
        )
        assert np.all(np.diff(np.concatenate(answers)[:, 0]) > 0)
        (stats,) = (await served.client.get_inference_statistics("colours", "1")).model_stats
        assert (stats.inference_count, stats.execution_count) == (4, 1)


async def test_a_canary_and_a_shadow_get_their_share(root: Path) -> None:
    parameter(root, "colours", "shadow_version", 2)
    async with serving(root) as served:
        # The bias moves red by 0.06 where all are equal, and by less where blue is alone.
        same, other = (0, 0, 255), (50, 50, 50)
        await ask(served, same, other, same, same)
        async with asyncio.timeout(20):
            while not (shadows := traffic(served.models, "colours").shadows):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert shadows[2].compared == 4
        assert shadows[2].agreed < 4


def test_another_version_is_swapped_in_by_a_reload(root: Path) -> None:
    with open_rig(root) as rig:
        add_version(root, 3, means((0, 0, 2)))
        before = rig.catalogue.resolve("colours")
        rig.loader.load("colours").result(SECONDS)
        after = rig.catalogue.resolve("colours")
    assert (before.version, after.version) == (2, 3)
    assert before.fingerprint != after.fingerprint


@pytest.mark.usefixtures("quickly_measured")
async def test_it_is_held_to_its_golden_file(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await held_to_golden_files(root, CONFIG, capsys)


async def test_import_takes_any_graph_for_a_model_that_is_an_analyser(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "import", "colours", "--model-repository", str(root), "--license", "mine"]
    graph = graphs.save(means((0, 2, 0)), tmp_path)
    assert main([*command, str(graph)]) == 0
    said = capsys.readouterr().err
    assert "an analyser, as its config.pbtxt says" in said
    assert "colours version 3 is imported" in said
    assert (root / "colours" / "3" / GOLDEN).is_file()
    async with serving(root) as served:
        assert (await ask(served, (0, 0, 0))).argmax() == 1
    for name, content in (("w.pth", b"\x80\x02}q."), ("text.onnx", b"hello")):
        (tmp_path / name).write_bytes(content)
        assert main([*command, str(tmp_path / name)]) == 1
    assert not (root / "colours" / "4").exists()
    # Without a configuration that says so, nobody knows what such a graph tells.
    command[2] = "others"
    assert main([*command, str(graph)]) == 1
    assert "neither an embedder" in capsys.readouterr().err


async def test_defaults_without_weights_are_left_out_and_failed_ones_told(root: Path) -> None:
    default = 'parameters { key: "analyse_by_default" value { string_value: "true" } }\n'
    (root / "colours" / "config.pbtxt").write_text(CONFIG + default)
    (root / "weightless").mkdir()
    other = (CONFIG + default).replace('"colours"', '"weightless"')
    (root / "weightless" / "config.pbtxt").write_text(other)
    red = AlignedFace(RawPixels(112, 112, bytes((255, 0, 0)) * 112 * 112))

    async def ask_defaults(rig: Rig) -> PhotoFaces:
        return await rig.pipeline.analyse(
            red, detector=ModelRef(), analysers=(), selection=LARGEST, call=Call()
        )

    with open_rig(root) as rig:
        (analysis,) = (await ask_defaults(rig)).faces[0].analyses
    assert (analysis.model.name, analysis.labels) == ("colours", ("red", "green", "blue"))
    np.testing.assert_allclose(analysis.values, softmax(np.array([1.3, 0, 0])), atol=1e-5)
    for version in ("1", "2"):
        (root / "colours" / version / "model.onnx").write_bytes(b"damaged")
    with open_rig(root) as rig, pytest.raises(ModelNotReady) as caught:
        await ask_defaults(rig)
    assert caught.value.field == "analysers"


async def test_answers_are_averaged_with_another_models_once_the_configuration_says_so(
    root: Path,
) -> None:
    """The network is not loaded again for that, and at Triton's door it answers for itself."""
    shutil.copytree(root / "colours", root / "tints")
    shutil.rmtree(root / "tints" / "2")
    (root / "tints" / "config.pbtxt").write_text(CONFIG.replace('"colours"', '"tints"'))
    red = AlignedFace(RawPixels(112, 112, bytes((255, 0, 0)) * 112 * 112))

    async def chances(rig: Rig) -> NDArray[Any]:
        found = await rig.pipeline.analyse(
            red,
            detector=ModelRef(),
            analysers=[ModelRef("colours")],
            selection=LARGEST,
            call=Call(),
        )
        return found.faces[0].analyses[0].values

    own, others = softmax(np.array([1.3, 0, 0])), softmax(np.array([1.0, 0, 0]))
    with open_rig(root) as rig:
        np.testing.assert_allclose(await chances(rig), own, atol=1e-5)
        loaded = rig.catalogue.resolve("colours").slot
        parameter(root, "colours", "average_with", "tints")
        rig.loader.load("colours").result(SECONDS)
        np.testing.assert_allclose(await chances(rig), (own + others) / 2, atol=1e-5)
        assert rig.catalogue.resolve("colours").slot is loaded
    async with serving(root) as served:
        np.testing.assert_allclose((await ask(served, (255, 0, 0)))[0], own, atol=1e-5)


async def test_other_roles_do_not_take_it_for_theirs(root: Path) -> None:
    async with serving(root) as served:
        with pytest.raises(InvalidRequest) as caught, served.models.lease("colours", role=EMBEDDER):
            pass
        assert "model 'colours' is an analyser, where an embedding model is needed" in (
            caught.value.message
        )


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
async def test_a_grey_network_sees_the_brightness(root: Path, backend: str) -> None:
    shutil.rmtree(root / "colours" / "2")
    shutil.rmtree(root / "colours" / "1")
    add_version(root, 1, means((0.25,), channels=1))
    text = CONFIG.replace('"RGB"', '"GREY"').replace('"classification"', '"score"')
    text = text.replace("dims: [ 3 ]", "dims: [ 1 ]").replace('"softmax"', '"none"')
    text = re.sub(r".*labels.*\n", "", text).replace(
        'mean" value { string_value: "0"', 'mean" value { string_value: "55"'
    )
    text += f'parameters {{ key: "cpu_backend" value {{ string_value: "{backend}" }} }}\n'
    (root / "colours" / "config.pbtxt").write_text(text)
    async with serving(root) as served:
        found = await ask(served, (200, 100, 50), (60, 60, 60))
    grey = np.array([[round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)], [60]])
    np.testing.assert_allclose(found, (grey - 55) / 255 + 0.25, atol=1e-6)


async def test_what_is_no_probability_is_not_served(root: Path) -> None:
    path = root / "colours" / "config.pbtxt"
    path.write_text(CONFIG.replace('"softmax"', '"none"').replace('"1/255"', '"1"'))
    async with serving(root) as served:
        assert set(served.states().values()) == {State.UNAVAILABLE}
        assert "which are no probabilities: `activation` may have to be softmax" in served.reason(1)


async def test_labels_may_come_from_a_file(root: Path) -> None:
    config = root / "colours" / "config.pbtxt"
    text = re.sub(r".*labels.*\n", "", CONFIG)
    config.write_text(text.replace("dims: [ 3 ] }", 'dims: [ 3 ] label_filename: "labels.txt" }'))
    labels = root / "colours" / "labels.txt"
    labels.write_text("crimson\nemerald, bright\n\nazure\n")
    read = read_config(config)
    assert isinstance(read, ModelConfig)
    assert read.options.labels == ("crimson", "emerald, bright", "azure")


def of_numbers(text: str) -> str:
    text = re.sub(r".*labels.*\n", "", text).replace("dims: [ 3 ]", "dims: [ 1 ]")
    return text.replace('"classification"', '"number"')


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"classification"', '"guess"', "answer: is 'guess'; must be one of classification, score"),
        ("red, green, blue", "red, green", "labels: has 2; must be 3 different ones"),
        ("red, green, blue", "red, red, blue", "labels: has 3; must be 3 different ones"),
        ('"classification"', '"score"', "labels: has no meaning for a score; remove it"),
        ('"labels"', '"unit"', "unit: has no meaning for a classification; remove it"),
        ("3, 16, 16", "3, 16, 8", "wants a square input: its dims must be [3, S, S]"),
        ("3, 16, 16", "3, -1, -1", "wants a square input"),
        ('"activation"', '"margin"', "margin: has no meaning for a crop around the template"),
        ('"RGB"', '"GRAY"', "must be one of RGB, BGR, GREY"),
        ("dims: [ 3 ] }", 'dims: [ 3 ] label_filename: "../l" }', "a file beside the config.pbtxt"),
        ("dims: [ 3 ] }", 'dims: [ 3 ] label_filename: "none" }', "'none' cannot be read"),
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
