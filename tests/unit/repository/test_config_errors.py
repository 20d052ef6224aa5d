"""A config.pbtxt that cannot be used: the error names file, line, field and the fix."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mien_server.repository.config.model import ConfigError, ModelConfig, read_config

Read = Callable[[str], ModelConfig]

BAD = [
    # (what is replaced, by what, line, field, part of the message)
    ("max_batch_size: 8", "max_batch_sise: 8", 3, "", "max_batch_sise"),
    ("max_batch_size: 8", "max_batch_size: many", 3, "", "many"),
    ('name: "model"', 'name: "other"', 1, "name", "must be the folder's name, 'model'"),
    ('backend: "pytorch"', 'backend: "tensorrt"', 2, "backend", "pytorch"),
    ('backend: "pytorch"', "", 1, "backend", "pytorch"),
    (
        'backend: "pytorch"',
        'backend: "openvino" default_model_filename: "model.bin"',
        2,
        "default_model_filename",
        "for backend 'openvino' it must be a .onnx or .safetensors file",
    ),
    (
        "$",
        '\nparameters { key: "cpu_backend" value { string_value: "onnxruntime" } }',
        12,
        "parameters.cpu_backend",
        "openvino",
    ),
    ("max_batch_size: 8", "", 1, "max_batch_size", "at least 1"),
    ("max_batch_size: 8", "max_batch_size: -1", 3, "max_batch_size", "at least 1"),
    ("max_batch_size: 8", "max_batch_size: 2147483647", 3, "max_batch_size", "at most 4096"),
    (
        "max_batch_size: 8",
        'max_batch_size: 8\nplatform: "onnxruntime_onnx"',
        4,
        "platform",
        "backend",
    ),
    ("dynamic_batching { }", "sequence_batching { }", 4, "sequence_batching", "no state"),
    ("dynamic_batching { }", "ensemble_scheduling { }", 4, "ensemble_scheduling", "not supported"),
    (
        "$",
        "model_transaction_policy {\n decoupled: true }",
        12,
        "model_transaction_policy.decoupled",
        "one answer",
    ),
    ("$", "model_operations { }", 11, "model_operations", "not supported"),
    (
        "$",
        "\n\ninstance_group [\n  { kind: KIND_CPU },\n  { kind: KIND_CPU\n passive: true } ]",
        16,
        "instance_group[1].passive",
        "not supported",
    ),
    (
        "dims: [ 3, 112, 112 ]",
        "dims: [ 3, 112, 112 ]\n reshape { shape: [ 1 ] }",
        6,
        "input[0].reshape",
        "not supported",
    ),
    (
        "dims: [ 3, 112, 112 ]",
        "optional: true dims: [ 3, 112, 112 ]",
        5,
        "input[0].optional",
        "not supported",
    ),
    ("dims: [ 3, 112, 112 ]", "dims: [ 112, 112, 3 ]", 5, "input[0].dims", "[3, -1, -1]"),
    (
        "dims: [ 3, 112, 112 ]",
        "format: FORMAT_NHWC\ndims: [ 3, 112, 112 ]",
        5,
        "input[0].format",
        "FORMAT_NCHW",
    ),
    ("TYPE_UINT8", "TYPE_FP32", 5, "input[0].data_type", "must be TYPE_UINT8"),
    ('name: "face"', "", 5, "input[0]", "has no name"),
    (
        'output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 128 ] } ]',
        "",
        1,
        "output",
        "has 0 tensors",
    ),
    ("dims: [ 128 ]", "dims: [ -1 ]", 6, "output[0].dims", "embedding's size"),
    (
        "{ }",
        "{\n preferred_batch_size: [ 4,\n 16 ] }",
        6,
        "dynamic_batching.preferred_batch_size",
        "16 must be in [1, 8]",
    ),
    (
        "{ }",
        "{\n preferred_batch_size: 4\n preferred_batch_size: 0 }",
        6,
        "dynamic_batching.preferred_batch_size",
        "0 must be in [1, 8]",
    ),
    (
        "{ }",
        "{\n priority_levels: 2\n default_priority_level: 3 }",
        6,
        "dynamic_batching.default_priority_level",
        "[1, 2]",
    ),
    (
        "{ }",
        "{\n default_priority_level: 3 }",
        5,
        "dynamic_batching.default_priority_level",
        "needs priority_levels",
    ),
    ("{ }", "{\n priority_levels: 2 }", 4, "dynamic_batching.default_priority_level", "[1, 2]"),
    (
        "{ }",
        "{ priority_levels: 2 default_priority_level: 1\n priority_queue_policy {\n key: 3\n"
        " value { } } }",
        6,
        "dynamic_batching.priority_queue_policy.3",
        "level 3",
    ),
    (
        "{ }",
        "{ priority_levels: 2 default_priority_level: 1\n preserve_ordering: true }",
        5,
        "dynamic_batching.preserve_ordering",
        "more than one priority",
    ),
    (
        "{ }",
        "{ preserve_ordering: true\n default_queue_policy { timeout_action: DELAY } }",
        4,
        "dynamic_batching.preserve_ordering",
        "DELAY",
    ),
    ("{ }", "{ max_queue_delay_microseconds: -5 }", 4, "", "-5"),
    (
        "$",
        "version_policy { specific { } }",
        11,
        "version_policy.specific.versions",
        "at least one",
    ),
    (
        "$",
        "version_policy { specific { versions: [ 1,\n 0 ] } }",
        12,
        "version_policy.specific.versions",
        "0 must be at least 1",
    ),
    ("$", "instance_group { kind: KIND_MODEL }", 11, "instance_group[0].kind", "KIND_CPU"),
    ("$", "instance_group { kind: KIND_CPU\ncount: -1 }", 12, "instance_group[0].count", "-1"),
    ("$", "instance_group { kind: KIND_CPU\n\ngpus: 0 }", 13, "instance_group[0].gpus", "KIND_CPU"),
    (
        "$",
        "instance_group { kind: KIND_GPU gpus: [ 0,\n1,\n0 ] }",
        11,
        "instance_group[0].gpus",
        "once",
    ),
    (
        "$",
        'default_model_filename: "../model.safetensors"',
        11,
        "default_model_filename",
        "in the version folder",
    ),
    ("$", 'default_model_filename: "model.pt"', 11, "default_model_filename", ".safetensors"),
    (
        "$",
        'parameters { key: "matchthreshold" value { string_value: "1" } }',
        11,
        "parameters.matchthreshold",
        "did you mean match_threshold?",
    ),
    ("$", 'parameters { key: "zzz" value { string_value: "1" } }', 11, "parameters.zzz", "known:"),
    ("$", 'parameters { key: "mean" value { string_value: "1" } }', 11, "parameters.mean", "twice"),
    (
        "$",
        '\nparameters { key: "me" # and\n"an" value { string_value: "1" } }',
        12,
        "parameters.mean",
        "twice",
    ),
    (
        "$",
        'parameters { key: "mea\\x6e" value { string_value: "1" } }',
        11,
        "parameters.mean",
        "twice",
    ),
    ('"127.5"', '"a, b, c"', 9, "parameters.mean", "'a' is no number"),
    ('"127.5"', '"1, 2"', 9, "parameters.mean", "has 2 values"),
    ('"127.5"', '"256"', 9, "parameters.mean", "[0, 255]"),
    ('"1/128"', '"1/0"', 10, "parameters.scale", "'1/0' is no number"),
    ('"1/128"', '"nan"', 10, "parameters.scale", "must be in [0, 1]"),
    ('"1/128"', '"0"', 10, "parameters.scale", "above 0"),
    ('"1/128"', '"1, 0, 1"', 10, "parameters.scale", "above 0"),
    ('"1/128"', '"1, 1"', 10, "parameters.scale", "has 2 values"),
    ('"RGB"', '"GBR"', 8, "parameters.channel_order", "one of RGB, BGR"),
    ('"sface"', '"sphereface"', 7, "parameters.architecture", "sface"),
    (
        'parameters { key: "mean" value { string_value: "127.5" } }',
        "",
        7,
        "parameters.mean",
        "is missing",
    ),
    (
        "$",
        'parameters { key: "precision" value { string_value: "int8" } }',
        11,
        "parameters.precision",
        "bf16",
    ),
    (
        "$",
        'parameters { key: "match_threshold" value { string_value: "1.5" } }',
        11,
        "parameters.match_threshold",
        "[-1, 1]",
    ),
    (
        "$",
        'parameters { key: "buckets" value { string_value: "320" } }',
        11,
        "parameters.buckets",
        "no meaning for sface",
    ),
    (
        "$",
        'parameters { key: "max_queue_size" value { string_value: "0" } }',
        11,
        "parameters.max_queue_size",
        "at least 1",
    ),
    (
        "$",
        'parameters { key: "look_ahead" value { string_value: "x" } }',
        11,
        "parameters.look_ahead",
        "no whole number",
    ),
    (
        "$",
        'parameters { key: "split_rows" value { string_value: "yes" } }',
        11,
        "parameters.split_rows",
        "true, false",
    ),
    ("$", "model_warmup { batch_size: 9 }", 11, "model_warmup[0].batch_size", "[1, 8]"),
    ("$", "model_warmup { }", 11, "model_warmup[0].batch_size", "is 0"),
    ("$", "model_warmup { batch_size: 1 }", 11, "model_warmup[0].inputs", '"face"'),
    (
        "$",
        'model_warmup { batch_size: 1\ninputs { key: "face" value {\n data_type: TYPE_UINT8\n'
        " dims: [ 3, 64, 64 ] zero_data: true } } }",
        14,
        "model_warmup[0].inputs.face.dims",
        "[3, 112, 112]",
    ),
    (
        "$",
        'model_warmup { batch_size: 1\ninputs { key: "face" value { data_type: TYPE_FP32\n'
        " dims: [ 3, 112, 112 ] zero_data: true } } }",
        12,
        "model_warmup[0].inputs.face.data_type",
        "TYPE_UINT8",
    ),
    (
        "$",
        'model_warmup { batch_size: 1\ninputs { key: "face" value { data_type: TYPE_UINT8\n'
        " dims: [ 3, 112, 112 ] } } }",
        12,
        "model_warmup[0].inputs.face",
        "has no data",
    ),
    (
        "$",
        'model_warmup { batch_size: 1\ninputs { key: "face" value { data_type: TYPE_UINT8\n'
        " dims: [ 3, 112, 112 ] random_data: false } } }",
        13,
        "model_warmup[0].inputs.face.random_data",
        "is false",
    ),
    (
        "$",
        'model_warmup { batch_size: 1\ninputs { key: "face" value { data_type: TYPE_UINT8\n'
        ' dims: [ 3, 112, 112 ]\n input_data_file: "/etc/passwd" } } }',
        14,
        "model_warmup[0].inputs.face.input_data_file",
        "random_data",
    ),
    (
        "$",
        'model_warmup { batch_size: 1\ncount: 101 inputs { key: "face" value { data_type: TYPE_UINT8\n'
        " dims: [ 3, 112, 112 ] zero_data: true } } }",
        12,
        "model_warmup[0].count",
        "is 101; must be in [0, 100], where 0 means once",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "message"), BAD)
def test_error_names_file_line_field_and_fix(
    read: Read,
    embedder: str,
    tmp_path: Path,
    old: str,
    new: str,
    line: int,
    field: str,
    message: str,
) -> None:
    assert old == "$" or embedder.count(old) == 1, "the row of this table is stale"
    text = embedder + new if old == "$" else embedder.replace(old, new)
    with pytest.raises(ConfigError) as caught:
        read(text)
    error = caught.value
    assert error.path == tmp_path / "model" / "config.pbtxt"
    assert (error.line, error.field) == (line, field)
    assert message in error.problem
    assert str(error).startswith(f"{error.path}:{line}: ")


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ("", "no whole number"),
        ("300", "multiple of 32"),
        ("640,320", "ascending"),
        ("8192", "4096"),
    ],
)
def test_buckets_of_a_detector_must_suit_its_network(
    read: Read, detector: str, buckets: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(detector.replace("320,640", buckets))
    assert (caught.value.line, caught.value.field) == (14, "parameters.buckets")


def test_match_threshold_has_no_meaning_for_a_detector(read: Read, detector: str) -> None:
    with pytest.raises(ConfigError, match="no meaning") as caught:
        read(detector + 'parameters { key: "match_threshold" value { string_value: "0.3" } }')
    assert caught.value.line == detector.count("\n") + 1


def test_comments_strings_and_angle_brackets_do_not_move_lines(read: Read, embedder: str) -> None:
    text = embedder.replace(
        "dynamic_batching { }",
        "# } { preferred_batch_size: 9\ndynamic_batching <\n  # 16\n  preferred_batch_size: [ 4, # 9\n"
        "    16 ]\n>",
    ).replace('"RGB"', '"R" \'G\'\n"B"')
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert (caught.value.line, caught.value.field) == (8, "dynamic_batching.preferred_batch_size")


def test_warm_up_of_an_absurd_size_is_refused(read: Read, detector: str) -> None:
    sample = """
model_warmup {
  name: "all at once" batch_size: 4000
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 3, 640, 640 ] zero_data: true } }
}
"""
    text = detector.replace("max_batch_size: 4", "max_batch_size: 4096")
    with pytest.raises(ConfigError, match="makes a batch of 4915200000 bytes") as caught:
        read(text + sample)
    assert caught.value.field == "model_warmup[0].batch_size"


def test_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "config.pbtxt"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(path)
    path.write_bytes(b'name: "model"\n\xff\xfe')
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        read_config(path)
    assert caught.value.line == 2
    path.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="1 MiB"):
        read_config(path)
