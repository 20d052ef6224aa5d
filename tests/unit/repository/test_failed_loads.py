"""A load that fails changes nothing for callers, whatever the new configuration would have meant."""

import logging
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from mien_server.errors import ModelNotFound, ModelNotReady
from mien_server.models.roles import EMBEDDER
from mien_server.repository import loading
from mien_server.repository.versions import State
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    add_version,
    configure,
    embed,
    failure,
    keep_versions,
    line,
    parameter,
)


def corrupt(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\1" * 100)


def test_config_of_another_kind_of_model_does_not_replace_what_serves(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository()
    other = (root / "retinaface" / "config.pbtxt").read_text()
    (root / "sface" / "config.pbtxt").write_text(other.replace('"retinaface"', '"sface"'))
    failure(repository, "sface")
    assert embed(repository.catalogue.resolve("sface", role=EMBEDDER)).shape == (128,)
    assert "it serves on; loading it again failed: " in line(repository, "sface", 1).reason


def test_failed_load_that_would_leave_only_a_shadow_keeps_the_old_routing(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository()
    corrupt(add_version(root, "sface", 2, seed=1))
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 1)
    failure(repository, "sface")
    with repository.catalogue.lease("sface") as (model, shadow):
        assert (model.version, shadow) == (1, None)
    assert repository.catalogue.unready(["sface"], strict=True) == {}
    assert line(repository, "sface", 2).state is State.UNAVAILABLE


def test_settings_that_need_no_load_change_only_with_the_load(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository()
    corrupt(add_version(root, "sface", 2, seed=1))
    keep_versions(root, "sface", 2)
    configure(root, "sface", '"0.363"', '"0.5"')
    parameter(root, "sface", "shadow_version", 1)
    failure(repository, "sface")
    assert repository.catalogue.resolve("sface").config.options.match_threshold == 0.363
    before = repository.catalogue.resolve("sface").slot
    add_version(root, "sface", 2, seed=1)
    repository.loader.load("sface").result(SECONDS)
    found = repository.catalogue.resolve("sface", 1)
    assert (found.config.options.match_threshold, found.slot) == (0.5, before)


def test_reload_that_works_leaves_no_complaint_and_a_later_failure_is_told(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository()
    configure(root, "sface", "max_batch_size: 32", "max_batch_size: 16")
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.drained(SECONDS)
    assert (line(repository, "sface", 1).state, line(repository, "sface", 1).reason) == (
        State.READY,
        "",
    )
    add_version(root, "sface", 1, seed=2)
    corrupt(root / "sface" / "1")
    failure(repository, "sface")
    assert "does not match its manifest" in line(repository, "sface", 1).reason
    configure(root, "sface", "max_batch_size: 16", "max_batch_size: 16 nonsense: 1")
    failure(repository, "sface")
    assert "nonsense" in line(repository, "sface", 1).reason


def test_model_of_which_only_the_shadow_loads_is_not_ready(
    root: Path, open_repository: Open
) -> None:
    corrupt(add_version(root, "sface", 1))
    add_version(root, "sface", 2, seed=1)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 2)
    repository = open_repository()
    with pytest.raises(ModelNotReady):
        repository.catalogue.resolve("sface")
    (why,) = repository.catalogue.unready(["sface"], strict=False).values()
    assert "version 2: it is the shadow" in why
    assert [each.version for each in repository.catalogue.statistics()] == [2]


def test_slow_load_of_one_model_does_not_keep_polling_from_the_others(
    root: Path, open_repository: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode="poll")
    wait(repository.loader.poll(), SECONDS)
    started, go_on = threading.Event(), threading.Event()

    def load_slowly(config: Any, *arguments: Any, **options: Any) -> Any:
        if config.name == "sface":
            started.set()
            assert go_on.wait(SECONDS)
        return loading.load_version(config, *arguments, **options)

    monkeypatch.setattr("mien_server.repository.loader.load_version", load_slowly)
    add_version(root, "sface", 2, seed=1)
    (slow,) = repository.loader.poll()
    assert started.wait(SECONDS)
    add_version(root, "retinaface", 1)
    done, waiting = wait(repository.loader.poll(), SECONDS)
    assert (len(done), len(waiting)) == (1, 0)
    assert repository.catalogue.resolve("retinaface").version == 1
    assert not slow.done()
    assert repository.loader.poll() == []
    go_on.set()
    slow.result(SECONDS)
    assert repository.catalogue.resolve("sface").version == 2


def test_root_given_twice_is_one_root(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(root, root / ".." / root.name)
    assert repository.catalogue.resolve("sface").version == 1


def test_root_that_is_a_link_may_be_turned_to_another_release(
    root: Path, tmp_path: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    current = tmp_path / "current"
    current.symlink_to(root)
    repository = open_repository(current, mode="poll")
    release = tmp_path / "release"
    root.rename(release)
    add_version(release, "sface", 2, seed=1)
    current.unlink()
    current.symlink_to(release)
    wait(repository.loader.poll(), SECONDS)
    assert repository.catalogue.resolve("sface").version == 2


def test_start_with_a_name_that_is_no_model_s_loads_nothing(
    root: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(root, "sface", 1)
    caplog.set_level(logging.INFO)
    with pytest.raises(ModelNotFound, match="there is no model 'nobody'; the models are: arcface"):
        open_repository(names=("sface", "nobody"))
    assert caplog.messages == []


def test_load_from_a_repository_that_cannot_be_listed_says_so(
    root: Path, tmp_path: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    root.rename(tmp_path / "away")
    assert "a model repository cannot be listed" in failure(repository, "sface").message
    assert repository.catalogue.resolve("sface").version == 1
