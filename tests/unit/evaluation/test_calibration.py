"""Thresholds are written into a config.pbtxt and nothing else of it changes."""

from pathlib import Path

import pytest

from mien_server.evaluation.calibration import calibrate, with_parameters
from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.metrics import Operation
from mien_server.repository.config.model import ConfigError, ModelConfig, read_config
from mien_server.repository.config.pbtxt import ConfigText

SHIPPED = Path(__file__).parents[3] / "model_repository" / "sface" / "config.pbtxt"
TABLE = [Operation(0.1, 30, 0.25, 0.9), Operation(0.01, 300, 0.412345, 0.8), Operation(0.001, 3000)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sface" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text(SHIPPED.read_text())
    return path


def _read(path: Path) -> ModelConfig:
    config = read_config(path)
    assert isinstance(config, ModelConfig)
    return config


def test_the_config_has_the_new_thresholds_and_all_else_as_before(config: Path) -> None:
    before = config.read_text().splitlines()
    calibrate(config, 0.37501, TABLE, "on lfw.bin")
    read = _read(config)
    assert read.options.match_threshold == 0.3751
    assert read.options.thresholds_by_far == ((0.1, 0.25), (0.01, 0.4124))
    after = config.read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=False) if a != b]
    assert changed == [
        (
            '  { key: "match_threshold", value: { string_value: "0.363" } },',
            '  { key: "match_threshold", value: { string_value: "0.3751" } },  # calibrated on lfw.bin',
        )
    ]
    assert after[len(before) :] == [
        "",
        'parameters { key: "thresholds_by_far", value: { string_value: "0.1: 0.2500, 0.01: 0.4124" } }'
        "  # calibrated on lfw.bin",
    ]


def test_calibrating_again_replaces_what_was_written(config: Path) -> None:
    calibrate(config, 0.3, TABLE, "on lfw.bin")
    calibrate(config, 0.4, TABLE[:1], "on cfp.bin")
    text = config.read_text()
    assert "lfw.bin" not in text
    assert text.count("# calibrated on cfp.bin") == 2
    assert (_read(config).options.match_threshold, _read(config).options.thresholds_by_far) == (
        0.4,
        ((0.1, 0.25),),
    )


def test_a_model_without_threshold_gets_one(config: Path) -> None:
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if '"match_threshold"' not in line))
    assert _read(config).options.match_threshold is None
    calibrate(config, -0.25, [], "on lfw.bin")
    assert (_read(config).options.match_threshold, _read(config).options.thresholds_by_far) == (
        -0.25,
        (),
    )


def test_a_commented_out_parameter_is_left_alone(config: Path) -> None:
    comment = '# { key: "match_threshold", value: { string_value: "0.9" } }\n'
    config.write_text(comment + config.read_text())
    calibrate(config, 0.5, [], "on lfw.bin")
    assert config.read_text().startswith(comment)
    assert _read(config).options.match_threshold == 0.5


@pytest.mark.parametrize(
    "entry",
    [
        'parameters { key: "a" value { string_value: "old" } }',
        "parameters { key: 'a', value: { string_value: 'o\\'ld' } }  # why",
        'parameters: {\n  key: "a"\n  value: {\n    string_value: "old"  # why\n  }\n}\n',
        'parameters { value { string_value: "o" "ld" } key: "a" }',
        'parameters [ { key: "b" value { string_value: "a" } }, { key: "a" value { string_value: "#" } } ]',
    ],
)
def test_an_entry_is_changed_where_it_stands_however_it_is_laid_out(entry: str) -> None:
    text = with_parameters(ConfigText(Path("config.pbtxt"), entry), {"a": "new"}, "now").source
    assert '"new"' in text
    assert text.count("parameters") == 1
    assert text.count("# calibrated now") == 1
    assert ("# why" in text) == ("# why" in entry)


def test_a_config_that_cannot_be_edited_is_left_as_it_is(config: Path) -> None:
    text = config.read_text().replace(
        '{ key: "match_threshold", value: { string_value: "0.363" } }',
        '{ key: "match_threshold", value: { } }',
    )
    config.write_text(text)
    with pytest.raises(
        EvaluationError, match=r"cannot be calibrated: .*match_threshold: is given twice"
    ):
        calibrate(config, 0.5, [], "on lfw.bin")
    assert config.read_text() == text
    assert [path.name for path in config.parent.iterdir()] == ["config.pbtxt"]


@pytest.mark.parametrize("table", ["0.1", "0.1: 0.2: 0.3", "2: 0.1", "0.1: x", "0.1: 1.5"])
def test_a_table_that_is_wrong_is_refused_by_name(config: Path, table: str) -> None:
    entry = f'parameters {{ key: "thresholds_by_far", value: {{ string_value: "{table}" }} }}\n'
    config.write_text(config.read_text() + entry)
    with pytest.raises(ConfigError, match=r"parameters\.thresholds_by_far"):
        read_config(config)
