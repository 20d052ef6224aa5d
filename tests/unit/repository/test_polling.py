"""Polling follows what happens to the folders, and one broken model does not stop it."""

import shutil
from concurrent.futures import wait
from pathlib import Path

import pytest

from mien_server.errors import ModelNotReady
from mien_server.repository.config.model import parse_config
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.loader import RepositoryError
from mien_server.repository.versions import State
from tests.unit.repository.folders import (
    Open,
    add_version,
    configure,
    line,
    reason,
    seal,
    states,
)


def half_copy(root: Path, name: str, version: int) -> bytes:
    """A version folder whose last bytes are still to come; returns them."""
    weights = add_version(root, name, version, seed=version) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1000])
    return content[-1000:]


def test_new_changed_and_removed_models_are_followed(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    add_version(root, "retinaface", 1)
    add_version(root, "sface", 2, seed=2)
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("retinaface").version == 1
    assert repository.catalogue.resolve("sface").version == 2
    (root / "retinaface").rename(tmp_path / "retinaface")
    wait(repository.loader.poll())
    assert repository.catalogue.drained(60)
    with pytest.raises(ModelNotReady, match="has been unloaded"):
        repository.catalogue.resolve("retinaface")
    assert ("retinaface", 1) not in states(repository)
    (tmp_path / "retinaface").rename(root / "retinaface")
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("retinaface").version == 1


def test_removed_version_gives_way_to_the_one_below(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    repository = open_repository(mode="poll")
    shutil.rmtree(root / "sface" / "2")
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").version == 1


def test_half_written_version_is_left_alone_until_it_is_whole(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    rest = half_copy(root, "sface", 2)
    for _ in range(3):
        wait(repository.loader.poll())
        assert repository.catalogue.resolve("sface").version == 1
        assert "its manifest says" in reason(repository, "sface", 2)
    with (root / "sface" / "2" / "model.safetensors").open("ab") as file:
        file.write(rest)
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").version == 2


def test_broken_model_does_not_stop_polling(root: Path, open_repository: Open) -> None:
    repository = open_repository(mode="poll")
    half_copy(root, "retinaface", 1)
    configure(root, "arcface", "max_batch_size: 32", "max_batch_size: many")
    add_version(root, "sface", 1)
    wait(repository.loader.poll())
    found = states(repository)
    assert found["sface", 1] is State.READY
    assert found["retinaface", 1] is State.UNAVAILABLE
    assert "config.pbtxt:8" in reason(repository, "arcface")


def test_unchanged_models_are_not_loaded_again(
    root: Path, open_repository: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(root, "sface", 1)
    half_copy(root, "retinaface", 1)
    repository = open_repository(mode="poll")
    loads: list[str] = []

    def count(text: ConfigText) -> object:
        loads.append(text.path.parent.name)
        return parse_config(text)

    monkeypatch.setattr("mien_server.repository.loader.parse_config", count)
    wait(repository.loader.poll())
    assert sorted(loads) == ["arcface", "retinaface"], "what failed is tried once more"
    wait(repository.loader.poll())
    assert sorted(loads) == ["arcface", "retinaface"], "and then only when its files change"


def test_changed_config_is_followed(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    configure(root, "sface", '"0.363"', '"0.5"')
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").config.options.match_threshold == 0.5


def test_touched_files_of_the_same_content_keep_the_slot(root: Path, open_repository: Open) -> None:
    folder = add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    slot = repository.catalogue.resolve("sface").slot
    seal(folder)
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").slot is slot


def test_unreadable_repository_unloads_nothing(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    root.rename(tmp_path / "away")
    with pytest.raises(RepositoryError, match="cannot be listed"):
        wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").version == 1
    assert repository.loader.index() == repository.catalogue.statuses()
    (tmp_path / "away").rename(root)
    wait(repository.loader.poll())
    assert line(repository, "sface", 1).state is State.READY


def test_folder_in_a_second_repository_is_refused_and_the_first_serves_on(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    other = tmp_path / "other"
    other.mkdir()
    repository = open_repository(root, other, mode="poll")
    shutil.copytree(root / "sface", other / "sface")
    wait(repository.loader.poll())
    assert repository.catalogue.resolve("sface").version == 1
    assert "in two repositories" in line(repository, "sface", 1).reason
    shutil.rmtree(other / "sface")
    wait(repository.loader.poll())
    assert line(repository, "sface", 1).reason == ""
