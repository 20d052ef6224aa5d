"""What an operator can mend has one root, and the command line shows it as one message and a status."""

from pathlib import Path

import pytest

from mien_server.backends.devices import DeviceError
from mien_server.backends.weights_file import LoadError
from mien_server.commands.main import main
from mien_server.errors import MienError, OperatorError
from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.pairs import DatasetError
from mien_server.repository.config.pbtxt import ConfigError
from mien_server.repository.golden import PrecisionError
from mien_server.repository.loader import RepositoryError
from mien_server.repository.manifest import ManifestError
from mien_server.rpc.ports import ListenError
from mien_server.scheduling.errors import SchedulingError
from mien_server.settings import SettingsError
from mien_server.start_checks import StartError
from mien_server.weights.errors import FetchError, WeightsError
from mien_server.weights.importer import ImportRefused
from mien_server.weights.install import InstallError
from mien_server.weights.quantise import QuantiseError
from mien_server.weights.seal import SealRefused

KINDS = [
    *(ConfigError, DatasetError, DeviceError, EvaluationError, FetchError, ImportRefused),
    *(InstallError, ListenError, LoadError, ManifestError, PrecisionError, QuantiseError),
    *(RepositoryError, SealRefused, SettingsError, StartError, WeightsError),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_that_an_operator_can_mend(kind: type[Exception]) -> None:
    assert issubclass(kind, OperatorError)


@pytest.mark.parametrize("kind", [MienError, SchedulingError])
def test_what_a_caller_did_is_none(kind: type[Exception]) -> None:
    assert not issubclass(kind, OperatorError)


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["models", "ls"],
        ["models", "seal", "sface", "--version", "1"],
        ["models", "quantize", "sface", "--calibration", "crops"],
        ["models", "check", "sface"],
        ["models", "check", "sface", "--make-golden"],
        ["evaluate", "verification", "--pairs", "pairs.csv"],
        ["evaluate", "detection", "--labels", "labels.txt", "--images", "photos"],
    ],
)
def test_a_repository_that_is_not_there_is_one_message(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "pairs.csv").write_text("photo.jpg,photo.jpg,1\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").touch()
    (tmp_path / "labels.txt").write_text("photo.jpg\n0\n")

    assert main([*command, "--model-repository", str(tmp_path / "nope")]) == 1

    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("mien-server: ")
    assert str(tmp_path / "nope") in said[0]
    assert "Errno" not in said[0]


def test_a_setting_that_cannot_hold_has_a_status_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--grpc-port", "70000"]) == 2
    assert capsys.readouterr().err.startswith("mien-server: --grpc-port (MIEN_GRPC_PORT): ")
