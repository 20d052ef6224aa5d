"""Ensembles in the repository: with their models, not before them, and not instead of one that works."""

from concurrent.futures import wait
from pathlib import Path

import pytest

from mien_server.repository.versions import State
from mien_server.scheduling.interface import Timing
from mien_server.weights.recognise.ulfd_graph import read_ulfd
from tests.unit.repository.conftest import SHIPPED
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    Opened,
    add_version,
    configure,
    failure,
    line,
    reason,
    seal,
)
from tests.unit.weights.public_ulfd import PublicUlfd, exported_ulfd

NAME = "face_embedding"


@pytest.fixture
def root(root: Path) -> Path:
    """The usual one, with the shipped ensemble and both of its models."""
    (root / NAME).mkdir()
    (root / NAME / "config.pbtxt").write_text((SHIPPED / NAME / "config.pbtxt").read_text())
    for name in ("retinaface", "sface"):
        add_version(root, name, 1)
    return root


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('model_name: "sface"', 'model_name: "sfacee"', "there is no model 'sfacee'"),
        ('model_name: "sface"', 'model_name: "face_embedding"', "is an ensemble of models"),
        ('model_name: "sface"', 'model_name: "retinaface"', "'retinaface' is a detector"),
        ('model_name: "retinaface"', 'model_name: "sface"', "'sface' is an embedding model"),
        ('model_name: "sface"', 'model_name: "arcface"', "'arcface' is not ready"),
        ('model_name: "sface"', 'model_name: "sface" model_version: 7', "has no version 7"),
        ("dims: [ 128 ]", "dims: [ 512 ]", "promises [512]"),
    ],
)
def test_ensemble_that_cannot_answer_does_not_replace_one_that_does(
    root: Path, open_repository: Open, old: str, new: str, why: str
) -> None:
    repository = open_repository()
    config = root / NAME / "config.pbtxt"
    good = config.read_text()
    text = good.replace("model_version: -1", "") if "model_version" in new else good
    assert old in text
    config.write_text(text.replace(old, new))
    assert why in failure(repository, NAME).message
    assert repository.catalogue.ensemble(NAME) is not None
    found = line(repository, NAME, 1)
    assert found.state is State.READY
    assert found.reason.startswith("it serves on; loading it again failed: ")
    assert why in found.reason
    config.write_text(good)
    repository.loader.load(NAME).result(SECONDS)
    assert line(repository, NAME, 1).reason == ""


def test_ensemble_of_a_detector_without_landmarks_cannot_answer(
    root: Path, open_repository: Open, tmp_path: Path
) -> None:
    public = exported_ulfd(PublicUlfd(64, 64, decoded=False), tmp_path / "public.onnx", 64, 64)
    (root / "ulfd" / "1").mkdir(parents=True)
    (root / "ulfd" / "config.pbtxt").write_text((SHIPPED / "ulfd" / "config.pbtxt").read_text())
    (root / "ulfd" / "1" / "model.onnx").write_bytes(read_ulfd(public.read_bytes()))
    seal(root / "ulfd" / "1")
    configure(root, NAME, 'model_name: "retinaface"', 'model_name: "ulfd"')
    repository = open_repository()
    assert line(repository, "ulfd", 1).state is State.READY
    assert reason(repository, NAME, 1).startswith("detector 'ulfd' places no landmarks, and")


def test_ensemble_that_never_could_answer_is_told_and_serves_once_its_models_do(
    root: Path, open_repository: Open
) -> None:
    manifest = root / "sface" / "1" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    repository = open_repository(mode="poll")
    assert "'sface' is not ready" in reason(repository, NAME, 1)
    assert repository.catalogue.unready([], strict=True).keys() == {"sface", NAME}
    manifest.write_bytes(content)
    wait(repository.loader.poll(), SECONDS)
    assert (line(repository, NAME, 1).state, line(repository, NAME, 1).reason) == (State.READY, "")
    assert repository.catalogue.unready([], strict=True) == {}


def test_ensemble_that_names_no_model_keeps_a_strict_server_from_being_ready(
    root: Path, open_repository: Open
) -> None:
    configure(root, NAME, 'model_name: "sface"', 'model_name: "sfacee"')
    repository = open_repository(mode="none")
    assert "there is no model 'sfacee'" in repository.catalogue.unready([], strict=True)[NAME]
    assert repository.catalogue.unready([], strict=False) == {}


def test_ensemble_of_a_model_without_weights_is_a_choice(root: Path, open_repository: Open) -> None:
    configure(root, NAME, 'model_name: "sface"', 'model_name: "arcface"')
    repository = open_repository(mode="none")
    assert "'arcface' is not ready" in reason(repository, NAME, 1)
    assert repository.catalogue.unready([], strict=True) == {}


def test_ensemble_starts_after_the_models_that_it_needs(
    root: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    repository = open_repository(mode="none")
    assert repository.catalogue.ensemble(NAME) is not None
    assert [each for each in caplog.messages if NAME in each] == []
    assert repository.catalogue.message(NAME).name == NAME
    assert repository.catalogue.message("sface").name == "sface"


def test_in_explicit_mode_an_ensemble_is_told_why_its_models_cannot_be_loaded(
    root: Path, open_repository: Open
) -> None:
    repository = open_repository(names=())
    configure(root, "sface", "max_batch_size", "max_batch_sise")
    assert "max_batch_sise" in failure(repository, NAME).message
    assert repository.catalogue.unready([], strict=True).keys() == {"sface", NAME}


def test_in_explicit_mode_an_ensemble_is_loaded_with_its_models(
    root: Path, open_repository: Open
) -> None:
    repository = open_repository(names=(NAME,))
    assert {
        status.name for status in repository.catalogue.statuses() if status.state is State.READY
    } == {
        NAME,
        "retinaface",
        "sface",
    }
    repository.loader.unload("sface").result(SECONDS)
    assert line(repository, NAME, 1).state is State.UNAVAILABLE
    repository.loader.load(NAME).result(SECONDS)
    assert repository.catalogue.ensemble(NAME) is not None


def test_ensembles_of_each_other_do_not_wait_for_each_other(
    root: Path, open_repository: Open
) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        text = (root / NAME / "config.pbtxt").read_text()
        (root / name).mkdir()
        (root / name / "config.pbtxt").write_text(
            text.replace(f'"{NAME}"', f'"{name}"').replace('"sface"', f'"{other}"')
        )
    repository = open_repository()
    for name in ("one", "two"):
        assert "is an ensemble of models" in reason(repository, name, 1)


def test_ensemble_counts_anew_after_it_was_unloaded(root: Path, open_repository: Open) -> None:
    repository = open_repository()
    timing = Timing(queue=0, preprocess=0, compute=0, postprocess=0, batch_rows=2)
    repository.catalogue.ensemble_counter(NAME).record_success(2, 0.1, timing)
    repository.loader.load(NAME).result(SECONDS)
    assert _rows(repository) == 2
    repository.loader.unload(NAME).result(SECONDS)
    repository.loader.load(NAME).result(SECONDS)
    assert _rows(repository) == 0


def _rows(repository: Opened) -> int:
    return next(each.totals.rows for each in repository.catalogue.statistics() if each.name == NAME)
