"""config.pbtxt: what is understood, and which file, line and field an error names."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mien_server.models.analyser import ANALYSER
from mien_server.models.crops import Crop
from mien_server.models.interface import AnyRole, Normalisation, TensorSpec
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorOptions, EmbedderOptions
from mien_server.repository.config.model import (
    ConfigError,
    InstanceGroup,
    ModelConfig,
    Warmup,
    read_config,
)
from mien_server.scheduling.batching import QueuePolicy, TimeoutAction

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "model_repository"

Read = Callable[[str], ModelConfig]


def test_shortest_embedder_has_the_documented_defaults(read: Read, embedder: str) -> None:
    config = read(embedder)
    assert (config.name, config.backend, config.role) == ("model", "pytorch", EMBEDDER)
    assert config.normalisation == Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
    assert config.options == EmbedderOptions()
    assert config.precision == "auto"
    assert config.options.match_threshold is None
    assert config.default_model_filename == "model.safetensors"
    assert config.instance_groups == (InstanceGroup("auto", 0, ()),)
    assert config.inputs == (TensorSpec("face", "TYPE_UINT8", (3, 112, 112)),)
    assert config.outputs == (TensorSpec("embedding", "TYPE_FP32", (128,)),)
    assert config.sides == (112,)
    assert config.warmup == ()
    assert config.batching.max_batch_size == 8
    assert config.batching.max_queue_delay == 0
    assert not config.batching.split_rows
    assert config.wanted_versions([1, 3, 2]) == (3,)


def test_an_embedder_of_another_size_says_what_it_sees(read: Read, embedder: str) -> None:
    large = embedder.replace("[ 3, 112, 112 ]", "[ 3, 160, 160 ]")
    with pytest.raises(ConfigError, match=r"window: is missing: say which part .* 160x160 pixels"):
        read(large)
    config = read(large + 'parameters { key: "window" value { string_value: "-8, -8, 128" } }')
    assert config.options.crop == Crop(160, window=(-8, -8, 128))
    assert config.sides == (160,)
    with pytest.raises(ConfigError, match="wants a square input"):
        read(embedder.replace("[ 3, 112, 112 ]", "[ 3, 112, 96 ]"))
    usual = read(embedder + 'parameters { key: "window" value { string_value: "0, 0, 112" } }')
    assert usual.runs_like(read(embedder))
    assert EMBEDDER.describe(usual.options) == ""


@pytest.mark.parametrize(
    ("named", "more", "backends", "filename"),
    [
        ("pytorch", "", ("pytorch", "openvino"), "model.safetensors"),
        ("pytorch", "pytorch", ("pytorch", "pytorch"), "model.safetensors"),
        ("pytorch", "openvino", ("pytorch", "openvino"), "model.safetensors"),
        ("onnxruntime", "", ("onnxruntime", "openvino"), "model.onnx"),
        ("onnxruntime", "onnxruntime", ("onnxruntime", "onnxruntime"), "model.onnx"),
        ("openvino", "", ("openvino", "openvino"), "model.onnx"),
    ],
)
def test_on_the_processor_openvino_runs_a_model_unless_cpu_backend_says_otherwise(
    read: Read, embedder: str, named: str, more: str, backends: tuple[str, str], filename: str
) -> None:
    text = embedder.replace('backend: "pytorch"', f'backend: "{named}"')
    if more:
        text += f'parameters {{ key: "cpu_backend" value {{ string_value: "{more}" }} }}\n'
    config = read(text)
    assert (config.backend, config.cpu_backend) == backends
    assert config.default_model_filename == filename


def test_openvino_takes_either_kind_of_weights(read: Read, embedder: str) -> None:
    text = embedder.replace(
        'backend: "pytorch"', 'backend: "openvino" default_model_filename: "model.safetensors"'
    )
    bf16 = text + 'parameters { key: "precision" value { string_value: "bf16" } }\n'
    assert read(bf16).precision == "bf16"


def test_detector_has_buckets_and_thresholds(read: Read, detector: str) -> None:
    more = """
parameters { key: "score_threshold" value { string_value: "0.7" } }
parameters { key: "nms_threshold" value { string_value: "0.3" } }
"""
    config = read(detector + more)
    assert config.role is DETECTOR
    assert config.options.buckets == config.sides == (320, 640)
    assert config.options == DetectorOptions((320, 640), 0.7, 0.3)
    assert config.normalisation == Normalisation("BGR", (104, 117, 123), 1)


def test_each_channel_may_have_a_scale_of_its_own(read: Read, embedder: str) -> None:
    text = embedder.replace('"127.5"', '"123.675, 116.28, 103.53"')
    config = read(text.replace('"1/128"', '"1/58.395, 1/57.12, 1/57.375"'))
    assert config.normalisation == Normalisation(
        "RGB", (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)
    )
    same = read(embedder.replace('"1/128"', '"1/128, 1/128, 1/128"'))
    assert same.normalisation == read(embedder).normalisation, "and so is the fingerprint"


def test_without_dynamic_batching_requests_are_not_combined(read: Read, embedder: str) -> None:
    config = read(embedder.replace("dynamic_batching { }", ""))
    assert not config.batching.combine
    assert config.batching.max_batch_size == 8, "the rows of one request still run together"
    assert not config.batching.split_rows
    assert read(embedder).batching.combine


def test_dynamic_batching_becomes_the_policy(read: Read, embedder: str) -> None:
    config = read(
        embedder.replace(
            "dynamic_batching { }",
            """
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 1500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 250000 max_queue_size: 10 }
  priority_queue_policy {
    key: 1
    value { timeout_action: DELAY allow_timeout_override: true default_timeout_microseconds: 1 }
  }
}
parameters { key: "max_queue_size" value { string_value: "7" } }
parameters { key: "max_queue_bytes" value { string_value: "1000000" } }
parameters { key: "look_ahead" value { string_value: "0" } }
parameters { key: "split_rows" value { string_value: "true" } }
""",
        )
    ).batching
    assert config.preferred_batch_sizes == (4, 8)
    assert config.max_queue_delay == 0.0015
    assert (config.priority_levels, config.default_priority_level) == (3, 2)
    assert config.default_queue_policy == QueuePolicy(
        TimeoutAction.REJECT, 0.25, allow_timeout_override=False, max_queue_size=10
    )
    assert config.priority_queue_policy == {
        1: QueuePolicy(TimeoutAction.DELAY, 1e-6, allow_timeout_override=True)
    }
    assert (config.max_queue_size, config.max_queue_bytes, config.look_ahead) == (7, 1_000_000, 0)
    assert config.split_rows


def test_preserve_ordering_is_honoured(read: Read, embedder: str) -> None:
    config = read(embedder.replace("{ }", "{ preserve_ordering: true }"))
    assert config.batching.preserve_ordering


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("{ kind: KIND_CPU count: 2 }", InstanceGroup("cpu", 2)),
        ("{ kind: KIND_GPU }", InstanceGroup("gpu")),
        ("{ count: 3 gpus: [ 1, 0 ] }", InstanceGroup("auto", 3, (1, 0))),
    ],
)
def test_instance_group(read: Read, embedder: str, group: str, expected: InstanceGroup) -> None:
    assert read(embedder + f"instance_group [ {group} ]").instance_groups == (expected,)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", (4,)),
        ("version_policy { latest { num_versions: 2 } }", (4, 2)),
        ("version_policy { latest { } }", (4,)),
        ("version_policy { all { } }", (4, 2, 1)),
        ("version_policy { specific { versions: [ 1, 3 ] } }", (3, 1)),
    ],
)
def test_version_policy_picks_versions(
    read: Read, embedder: str, policy: str, wanted: tuple[int, ...]
) -> None:
    assert read(embedder + policy).wanted_versions([2, 1, 4]) == wanted


def test_model_warmup_of_a_detector_names_a_bucket(read: Read, detector: str) -> None:
    sample = """
model_warmup {
  name: "big" batch_size: 2 count: 3
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 3, 640, 640 ] zero_data: true } }
}
model_warmup {
  batch_size: 1
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 3, 320, 320 ] random_data: true } }
}
"""
    config = read(detector + sample)
    assert config.warmup == (
        Warmup("big", batch_size=2, side=640, random=False, count=3),
        Warmup("", batch_size=1, side=320, random=True, count=1),
    )


def test_name_may_be_left_out(read: Read, embedder: str) -> None:
    assert read(embedder.replace('name: "model"\n', "")).name == "model"


def test_fields_without_effect_are_warned_of_by_name(
    read: Read, embedder: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(
            embedder
            + "optimization { priority: PRIORITY_MAX }\n"
            + "response_cache { enable: true }\n"
            + 'instance_group { host_policy: "numa0" name: "one" }\n'
        )
    lines = [record.getMessage().rsplit("config.pbtxt", 1)[-1] for record in caplog.records]
    assert sorted(lines) == [
        ":11: optimization has no effect",
        ":12: response_cache has no effect",
        ":13: instance_group[0].host_policy has no effect",
        ":13: instance_group[0].name has no effect",
    ]


def test_defaults_that_are_spelt_out_are_no_error(read: Read, embedder: str) -> None:
    assert read(embedder + "model_transaction_policy { decoupled: false }\nplatform: ''\n")


@pytest.mark.parametrize(
    ("name", "role", "dimensions", "license_"),
    [
        ("retinaface", DETECTOR, None, "MIT"),
        ("sface", EMBEDDER, 128, "Apache-2.0"),
        (
            "arcface",
            EMBEDDER,
            512,
            "InsightFace and ModelScope weights: non-commercial research only",
        ),
        ("age", ANALYSER, 1, "CC0-1.0"),
        ("gender", ANALYSER, 2, "CC0-1.0"),
        ("expression", ANALYSER, 7, "MIT"),
    ],
)
def test_shipped_configs_are_valid_and_quiet(
    caplog: pytest.LogCaptureFixture,
    name: str,
    role: AnyRole,
    dimensions: int | None,
    license_: str,
) -> None:
    config = read_config(SHIPPED / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    assert (config.name, config.role, config.license) == (name, role, license_)
    assert config.source
    assert config.warmup
    assert not caplog.records
    if dimensions:
        assert config.outputs[0].dims == (dimensions,)
        if role is EMBEDDER:
            assert config.options.match_threshold is not None
        assert config.batching.split_rows
    else:
        assert config.options.buckets == (320, 640, 1024)
        assert config.normalisation.fill_rgb == (123, 117, 104)
