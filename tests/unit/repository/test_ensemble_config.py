"""config.pbtxt of ensembles: the one shape that is honoured, and every other refused by step and field."""

from pathlib import Path

import pytest

from mien_server.models.interface import TensorSpec
from mien_server.repository.config.ensembles import EnsembleConfig, EnsembleStep
from mien_server.repository.config.model import ConfigError, read_config

SHIPPED = Path(__file__).resolve().parents[3] / "model_repository/face_embedding/config.pbtxt"


def read(tmp_path: Path, text: str) -> EnsembleConfig:
    path = tmp_path / "face_embedding" / "config.pbtxt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    config = read_config(path)
    assert isinstance(config, EnsembleConfig)
    return config


def changed(*edits: tuple[str, str]) -> str:
    text = SHIPPED.read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_shipped_ensemble_is_the_default_detector_and_then_the_default_embedder() -> None:
    config = read_config(SHIPPED)
    assert isinstance(config, EnsembleConfig)
    assert config.name == "face_embedding"
    assert config.detector == EnsembleStep("retinaface")
    assert config.embedder == EnsembleStep("sface")
    assert config.inputs == (TensorSpec("image", "TYPE_STRING", (1,)),)
    assert config.outputs[0] == TensorSpec("embedding", "TYPE_FP32", (128,))
    assert config.values == {
        "embedding": "embedding",
        "box": "boxes",
        "score": "scores",
        "landmarks": "landmarks",
    }


def test_tensors_of_the_ensemble_may_have_any_names_and_steps_any_version(tmp_path: Path) -> None:
    text = (
        changed(
            ('input [\n  { name: "image"', 'input [\n  { name: "photo"'),
            ('key: "image", value: "image"', 'key: "image", value: "photo"'),
            ('{ name: "embedding"', '{ name: "vector"'),
            ('key: "embedding", value: "embedding"', 'key: "embedding", value: "vector"'),
            ('model_name: "sface"', 'model_name: "arcface"'),
            ("dims: [ 128 ]", "dims: [ 512 ]"),
            ("max_batch_size: 16", "max_batch_size: 0"),
        )
    ).replace("model_version: -1", "model_version: 7")
    config = read(tmp_path, text)
    assert config.inputs[0].name == "photo"
    assert config.values["vector"] == "embedding"
    assert (config.detector.version, config.embedder) == (7, EnsembleStep("arcface", 7))
    assert config.max_batch_size == 0


def test_outputs_may_be_fewer(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        changed(
            ('  { name: "score", data_type: TYPE_FP32, dims: [ 1 ] },\n', ""),
            ('        { key: "scores", value: "score" },\n', ""),
        ),
    )
    assert [spec.name for spec in config.outputs] == ["embedding", "box", "landmarks"]


LAST_STEP = """,
    {
      model_name: "sface"
      model_version: -1
      input_map { key: "face", value: "aligned_face" }
      output_map { key: "embedding", value: "embedding" }
    }"""

REFUSED: list[tuple[str, str, str, str]] = [
    ("max_batch_size: 16", "max_batch_size: -1", "max_batch_size", "0 or more"),
    ("TYPE_STRING", "TYPE_UINT8", "input", "TYPE_STRING"),
    ("TYPE_STRING, dims: [ 1 ]", "TYPE_STRING, dims: [ 2 ]", "input", "dims"),
    (LAST_STEP, "", "ensemble_scheduling.step", "has 1 steps"),
    ('model_name: "sface"', "", "ensemble_scheduling.step[1]", "step 1 names no model"),
    (
        'key: "image", value: "image"',
        'key: "image", value: "photo"',
        "ensemble_scheduling.step[0].input_map",
        "step 0",
    ),
    (
        'key: "face", value: "aligned_face"',
        'key: "face", value: "landmarks"',
        "ensemble_scheduling.step[1].input_map",
        "step 1",
    ),
    (
        'key: "scores", value: "score"',
        'key: "classes", value: "score"',
        "ensemble_scheduling.step[0].output_map.classes",
        "no output 'classes'",
    ),
    (
        'key: "embedding", value: "embedding"',
        'key: "embedding", value: "box"',
        "ensemble_scheduling.step[1].output_map.embedding",
        "given twice",
    ),
    ('{ name: "box"', '{ name: "rectangle"', "output[1].name", "no step has 'rectangle'"),
    ('{ name: "box"', '{ name: "embedding"', "output[1].name", "given twice"),
    ("dims: [ 4 ]", "dims: [ 5 ]", "output[1].dims", "[4]"),
    ("dims: [ 128 ]", "dims: [ -1 ]", "output[0].dims", "the embedding's size"),
    ('  { name: "box", data_type: TYPE_FP32, dims: [ 4 ] },\n', "", "output", "lacks"),
    ("max_batch_size: 16", 'backend: "pytorch"', "backend", "not supported"),
    ("max_batch_size: 16", "instance_group { count: 1 }", "instance_group", "not supported"),
    ('platform: "ensemble"', 'backend: "pytorch"', "ensemble_scheduling", "without platform"),
    ('name: "face_embedding"', 'name: "faces"', "name", "the folder's name"),
]


@pytest.mark.parametrize(("old", "new", "field", "problem"), REFUSED)
def test_anything_else_is_refused_with_its_field(
    tmp_path: Path, old: str, new: str, field: str, problem: str
) -> None:
    text = changed((old, new))
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.field == field
    assert problem in caught.value.problem
    step = 'model_name: "sface"' if "[1]" in field and "step" in field else 'model_name: "retina'
    if "step[" in field and step in text:
        assert caught.value.line >= text[: text.index(step)].count("\n")
