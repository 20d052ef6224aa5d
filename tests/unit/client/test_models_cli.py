"""`mien models`: its tables, its figures between two looks, and its failures. No server runs here."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from mien import cli
from mien.model_control import ModelDetails, ModelFigures, Tensor
from mien.models_cli import details_text, index_table, rates_table, statistics_table
from mien.status import ModelStatus

Run = Callable[..., tuple[int, str, str]]
NOWHERE = "127.0.0.1:1"
EARLIER = ModelFigures(
    name="sface",
    version=1,
    requests=4,
    failed=1,
    rows=6,
    batches=3,
    milliseconds={"total": 40.0, "queue": 10.0, "input": 1.0, "infer": 28.0, "output": 1.0},
    batch_sizes={2: 3},
    traffic={},
)
LATER = replace(
    EARLIER,
    requests=14,
    failed=1,
    rows=26,
    batches=8,
    milliseconds={"total": 240.0, "queue": 60.0, "input": 2.0, "infer": 176.0, "output": 2.0},
    batch_sizes={2: 3, 4: 5},
)
ENSEMBLE = replace(EARLIER, name="face_embedding", milliseconds={"total": 8.0})


def test_figures_between_two_looks_are_differences() -> None:
    recent = LATER.since(EARLIER)
    assert (recent.requests, recent.failed, recent.rows, recent.batches) == (10, 0, 20, 5)
    assert recent.batch_sizes == {2: 0, 4: 5}
    assert recent.rows_per_batch == 4
    assert recent.mean("total") == 20
    assert recent.mean("input", "infer", "output") == 15


def test_figures_of_a_version_loaded_anew_count_from_zero() -> None:
    assert EARLIER.since(LATER) == EARLIER
    assert EARLIER.since(None) == EARLIER


def test_means_of_nothing_are_none() -> None:
    idle = EARLIER.since(EARLIER)
    assert idle.mean("total") is None
    assert idle.rows_per_batch is None
    assert ENSEMBLE.mean("total") == 2
    assert ENSEMBLE.mean("queue") is None


def test_rates_are_per_second() -> None:
    assert rates_table([LATER.since(EARLIER)], 2.0).splitlines() == [
        "model  version  requests/s  failed/s  rows/s  batches/s  rows/batch     ms  queue ms  run ms",
        "sface        1         5.0       0.0    10.0        2.5         4.0  20.00      5.00   15.00",
    ]


def test_statistics_show_split_traffic_where_there_is_any() -> None:
    assert "traffic" not in statistics_table([EARLIER])
    table = statistics_table([ENSEMBLE, replace(LATER, traffic={"routed": 9})])
    assert table.splitlines()[1].split()[-2:] == ["-", "-"]
    assert table.splitlines()[-1].split() == ["sface", "1", "routed", "9"]


def test_index_says_why_a_model_is_not_ready() -> None:
    statuses = [
        ModelStatus("arcface", None, "UNAVAILABLE", "it has no weights"),
        ModelStatus("sface", 12, "READY", ""),
    ]
    assert index_table(statuses).splitlines() == [
        "model    version  state        reason",
        "arcface        -  UNAVAILABLE  it has no weights",
        "sface         12  READY",
    ]


def test_details_list_tensors_and_configuration() -> None:
    config = model_config_pb2.ModelConfig(name="sface")
    details = ModelDetails(
        name="sface",
        statuses=[ModelStatus("sface", 1, "READY", "")],
        platform="pytorch",
        inputs=[Tensor("face", "UINT8", [-1, 3, 112, 112])],
        outputs=[Tensor("embedding", "FP32", [-1, 128])],
        config=config,
    )
    text = details_text(details)
    assert "input    face       UINT8  [-1, 3, 112, 112]" in text
    assert text.endswith('name: "sface"')
    assert details.as_dict()["config"] == {"name": "sface"}


def test_missing_tritonclient_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "mien.model_control", raising=False)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    assert cli.main(["models", "ls", "--json"]) == 1
    error = json.loads(capsys.readouterr().err)
    assert error["reason"] == "MISSING_EXTRA"
    assert "pip install 'mien[models]'" in error["message"]


def test_the_other_commands_do_not_need_tritonclient(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mien.model_control", raising=False)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    assert run("detect", photo)[0] == 0
    status, output, _ = run("models", "ls", "--help")
    assert status == 0
    assert "states" in output


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["show", "m"], ["load", "m"], ["unload", "m"], ["stats"], ["watch", "--count", "1"]],
)
def test_server_that_is_not_there_is_a_failure(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", *arguments, "--address", NOWHERE, "--json"]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert json.loads(errors)["reason"] == "SERVER_UNREACHABLE"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["watch", "--interval", "0"],
        ["watch", "--interval", "nan"],
        ["watch", "--count", "-1"],
        ["ls", "--address", "http://localhost"],
        ["ls", "--timing"],
    ],
)
def test_wrong_command_line_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["models", *arguments])
    assert caught.value.code == 2
    assert "mien" in capsys.readouterr().err
