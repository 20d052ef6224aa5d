"""Which settings are tried of a model, and how the winner's get into its config.pbtxt."""

from dataclasses import replace
from pathlib import Path

import pytest

from mien_server.backends.instance import Computes
from mien_server.repository.config.model import (
    Backend,
    InstanceGroup,
    ModelConfig,
    parse_config,
    read_config,
)
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.tuning import Setting
from mien_server.tuning.candidates import Candidate, grid, others, own_candidate
from mien_server.tuning.rewriting import tuned
from tests.config_lines import changed_lines

SHIPPED = Path(__file__).parents[3] / "model_repository" / "sface" / "config.pbtxt"
OWN = Candidate("openvino", "fp32", (4,), 0.0, 2)


@pytest.fixture
def config() -> ModelConfig:
    read = read_config(SHIPPED)
    assert isinstance(read, ModelConfig)
    return read


def test_the_models_own_settings_are_what_its_config_says(config: ModelConfig) -> None:
    assert own_candidate(config, "openvino", "fp32", executors=2) == OWN
    alone = replace(config, batching=BatchingPolicy(max_batch_size=4, combine=False))
    assert own_candidate(alone, "openvino", "fp32", executors=2).preferred is None
    counted = replace(config, instance_groups=(InstanceGroup("cpu", 3),))
    assert own_candidate(counted, "openvino", "fp32", executors=8).count == 3
    several = replace(config, instance_groups=(InstanceGroup("cpu", 1), InstanceGroup("cpu", 1)))
    assert own_candidate(several, "openvino", "fp32", executors=8).count == 0


def test_all_settings_are_tried_and_none_twice() -> None:
    loaded: list[tuple[Backend, Computes]] = [("openvino", "fp32"), ("pytorch", "fp32")]
    found = grid(OWN, loaded, max_batch_size=8, executors=2, keep=())
    assert found[0] == OWN
    assert len(found) == len(set(found)) == 2 * 2 * (1 + 3 * 4)
    assert {each.preferred for each in found} == {(1,), (2,), (4,), (8,)}
    assert {each.count for each in found} == {1, 2}
    assert {each.delay_ms for each in found if each.preferred == (1,)} == {0.0}


def test_kept_settings_stay_as_they_are() -> None:
    own = replace(OWN, preferred=(3, 6), delay_ms=0.5)
    found = grid(
        own,
        [("openvino", "fp32")],
        max_batch_size=8,
        executors=2,
        keep=("batch", "delay", "count"),
    )
    assert found == [own]


def test_a_model_whose_requests_are_not_combined_stays_so_if_its_batches_are_kept() -> None:
    own = replace(OWN, preferred=None)
    keep: set[Setting] = {"batch"}
    found = grid(own, [("openvino", "fp32")], max_batch_size=8, executors=2, keep=keep)
    assert found == [own, replace(own, count=1)]


def test_both_backends_of_weights_are_tried_and_of_a_graph_its_own_precision(
    config: ModelConfig,
) -> None:
    pairs = others(config, OWN, (), on_cpu=True)
    assert ("pytorch", "fp32") in pairs
    assert ("openvino", "fp32") not in pairs, "it is the model's own"
    assert others(config, OWN, ("backend", "precision"), on_cpu=True) == []
    graph = replace(config, backend="onnxruntime", default_model_filename="model.onnx")
    int8 = replace(OWN, precision="int8")
    assert others(graph, int8, (), on_cpu=True) == [("onnxruntime", "int8")]
    on_gpu = Candidate("pytorch", "fp16", (4,), 0.0, 2)
    assert others(config, on_gpu, (), on_cpu=False) == [("pytorch", "bf16"), ("pytorch", "fp32")]


def test_a_candidate_changes_the_policy_it_names_and_no_other_setting(config: ModelConfig) -> None:
    policy = Candidate("openvino", "fp32", (8,), 2.0, 1).policy(config.batching)
    assert policy == replace(
        config.batching, preferred_batch_sizes=(8,), max_queue_delay=0.002, combine=True
    )


def test_only_what_the_winner_changes_is_written(config: ModelConfig) -> None:
    text = ConfigText.read(SHIPPED)
    assert tuned(text, OWN, OWN).source == text.source
    chosen = Candidate("pytorch", "bf16", (8,), 2.0, 1)
    after = tuned(text, OWN, chosen)
    assert changed_lines(text, after) == [
        "-   preferred_batch_size: [ 4 ]",
        "+   preferred_batch_size: [ 8 ]",
        "-   max_queue_delay_microseconds: 0",
        "+   max_queue_delay_microseconds: 2000",
        "- instance_group [ { kind: KIND_AUTO } ]",
        "+ instance_group [ { kind: KIND_AUTO, count: 1 } ]",
        '-   { key: "precision", value: { string_value: "auto" } },',
        '+   { key: "precision", value: { string_value: "bf16" } },',
        "+ ",
        '+ parameters { key: "cpu_backend", value: { string_value: "pytorch" } }',
    ]
    read = parse_config(after)
    assert isinstance(read, ModelConfig)
    assert own_candidate(read, read.cpu_backend, "bf16", executors=2) == chosen
    assert replace(
        read,
        batching=config.batching,
        instance_groups=config.instance_groups,
        precision=config.precision,
        cpu_backend=config.cpu_backend,
    ) == replace(config)


def test_a_model_without_batching_gets_it(config: ModelConfig) -> None:
    source = SHIPPED.read_text()
    begin = source.index("dynamic_batching {")
    without = source[:begin] + source[source.index("}", begin) + 1 :]
    text = ConfigText(SHIPPED, without)
    own = replace(OWN, preferred=None)
    read = parse_config(tuned(text, own, Candidate("openvino", "fp32", (2,), 1.0, 2)))
    assert isinstance(read, ModelConfig)
    assert (read.batching.preferred_batch_sizes, read.batching.max_queue_delay) == ((2,), 0.001)
