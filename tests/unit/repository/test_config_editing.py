"""Single fields of a config.pbtxt change, and nothing else of its text does."""

from pathlib import Path

import pytest

from mien_server.repository.config.editing import replace_text, with_field, with_parameter
from mien_server.repository.config.pbtxt import ConfigError, ConfigText, FieldPath
from tests.config_lines import changed_lines

SHIPPED = Path(__file__).parents[3] / "model_repository" / "sface" / "config.pbtxt"
PREFERRED: FieldPath = ("dynamic_batching", "preferred_batch_size")
DELAY: FieldPath = ("dynamic_batching", "max_queue_delay_microseconds")
COUNT: FieldPath = ("instance_group", 0, "count")


def test_a_field_is_changed_where_it_stands_and_comments_stay() -> None:
    shipped = ConfigText.read(SHIPPED)
    changed = with_field(with_field(shipped, PREFERRED, "[ 8 ]"), DELAY, "2000")
    changed = with_parameter(with_field(changed, COUNT, "1"), "precision", "fp32")
    assert changed_lines(shipped, changed) == [
        "-   preferred_batch_size: [ 4 ]",
        "+   preferred_batch_size: [ 8 ]",
        "-   max_queue_delay_microseconds: 0",
        "+   max_queue_delay_microseconds: 2000",
        "- instance_group [ { kind: KIND_AUTO } ]",
        "+ instance_group [ { kind: KIND_AUTO, count: 1 } ]",
        '-   { key: "precision", value: { string_value: "auto" } },',
        '+   { key: "precision", value: { string_value: "fp32" } },',
    ]
    assert list(changed.message.dynamic_batching.preferred_batch_size) == [8]
    assert changed.message.instance_group[0].count == 1


@pytest.mark.parametrize(
    ("text", "path", "value", "expected"),
    [
        ("dynamic_batching {}", PREFERRED, "[ 2 ]", "dynamic_batching { preferred_batch_size: [ 2 ] }"),
        (
            "dynamic_batching {\n  preferred_batch_size: 4  # four\n}\n",
            DELAY,
            "5",
            "dynamic_batching {\n  preferred_batch_size: 4  # four\n  max_queue_delay_microseconds: 5\n}\n",
        ),
        (
            "dynamic_batching { preferred_batch_size: 4, preferred_batch_size: 8; } # both\n",
            PREFERRED,
            "[ 2 ]",
            "dynamic_batching { preferred_batch_size: [ 2 ],  } # both\n",
        ),
        (
            "dynamic_batching < preferred_batch_size: [4,\n 8] >",
            PREFERRED,
            "[ 2 ]",
            "dynamic_batching < preferred_batch_size: [ 2 ] >",
        ),
        ('name: "a"', PREFERRED, "[ 2 ]", 'name: "a"\n\ndynamic_batching { preferred_batch_size: [ 2 ] }\n'),
        ('name: "a"\n', COUNT, "3", 'name: "a"\n\ninstance_group [ { count: 3 } ]\n'),
        ("instance_group {\n kind: KIND_CPU }", COUNT, "3", "instance_group {\n kind: KIND_CPU, count: 3 }"),
        (
            "instance_group: [{ count: 1 }, { count: 7 }]",
            COUNT,
            "3",
            "instance_group: [{ count: 3 }, { count: 7 }]",
        ),
        ("# count: 1", COUNT[:1], "{}", "# count: 1\n\ninstance_group {}\n"),
    ],
)  # fmt: skip
def test_a_field_is_set_however_the_file_is_laid_out(
    text: str, path: FieldPath, value: str, expected: str
) -> None:
    assert with_field(ConfigText(Path("config.pbtxt"), text), path, value).source == expected


def test_a_parameter_that_is_not_there_is_added() -> None:
    text = with_parameter(ConfigText(Path("config.pbtxt"), 'name: "a"'), "precision", "bf16")
    assert text.message.parameters["precision"].string_value == "bf16"
    assert text.source.startswith('name: "a"\n\nparameters {')


def test_what_would_be_no_config_is_refused() -> None:
    with pytest.raises(ConfigError):
        with_field(ConfigText(Path("config.pbtxt"), ""), ("max_batch_size",), "many")


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("old")
    path.chmod(0o640)
    replace_text(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)
    assert list(tmp_path.iterdir()) == [path]
