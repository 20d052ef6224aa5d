"""Versions are replaced beside those that serve, held by their calls, and freed after the last one."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mien_server.backends.weights_file import LoadError
from mien_server.errors import ModelNotReady
from mien_server.models.roles import EMBEDDER
from mien_server.repository.config.pbtxt import ConfigError
from mien_server.repository.loading import WarmupError
from mien_server.repository.manifest import ManifestError
from mien_server.repository.versions import State
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.interface import Work
from mien_server.scheduling.scheduler import Scheduler
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
    reason,
    seal,
    states,
)


def test_new_version_takes_over_and_the_old_one_is_freed(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    old = repository.catalogue.resolve("sface")
    add_version(root, "sface", 2, seed=2)
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface").version == 2
    assert repository.catalogue.drained(SECONDS)
    with pytest.raises(Draining, match="sface version 1 has been unloaded"):
        embed(old)
    assert not hasattr(old.slot.instances[0].instance, "_runner"), "its network is gone"
    assert reason(repository, "sface", 1) == "it has been unloaded"


def test_version_stays_loaded_while_a_call_holds_it(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    with repository.catalogue.lease("sface", role=EMBEDDER) as (held, _):
        before = embed(held)
        add_version(root, "sface", 2, seed=2)
        repository.loader.load("sface").result(SECONDS)
        with repository.catalogue.lease("sface") as (new, _):
            assert new.version == 2
        assert line(repository, "sface", 1).state is State.UNLOADING
        assert not repository.catalogue.drained(0.05)
        assert np.array_equal(embed(held), before)
        with pytest.raises(ModelNotReady, match="version 1: it takes no new calls"):
            repository.catalogue.resolve("sface", 1)
    assert repository.catalogue.drained(SECONDS)
    assert states(repository)["sface", 1] is State.UNAVAILABLE


def test_last_of_several_calls_frees_the_version(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    with ExitStack() as last:
        last.enter_context(repository.catalogue.lease("sface"))
        with repository.catalogue.lease("sface"):
            repository.loader.unload("sface").result(SECONDS)
            assert line(repository, "sface", 1).state is State.UNLOADING
        assert not repository.catalogue.drained(0.05)
    assert repository.catalogue.drained(SECONDS)


def test_changed_files_of_a_version_replace_it(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    old = repository.catalogue.resolve("sface")
    with repository.catalogue.lease("sface") as (held, _):
        add_version(root, "sface", 1, seed=7)
        repository.loader.load("sface").result(SECONDS)
        new = repository.catalogue.resolve("sface", 1)
        assert new.fingerprint != old.fingerprint
        assert not np.array_equal(embed(new), embed(held))
        assert states(repository)["sface", 1] is State.READY
    assert repository.catalogue.drained(SECONDS)


def test_unchanged_version_is_not_loaded_again(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=("sface",))
    slot = repository.catalogue.resolve("sface").slot
    add_version(root, "sface", 2, seed=2)
    configure(root, "sface", '"0.363"', '"0.4"')
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface", 1).slot is slot
    assert repository.catalogue.resolve("sface", 1).config.options.match_threshold == 0.4
    configure(root, "sface", "max_batch_size: 32", "max_batch_size: 16")
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface", 1).slot is not slot
    assert repository.catalogue.resolve("sface", 1).slot.policy.max_batch_size == 16


def test_version_without_its_manifest_is_not_served(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    (add_version(root, "sface", 2) / "manifest.json").unlink()
    repository = open_repository(names=("sface",))
    assert repository.catalogue.resolve("sface").version == 1, (
        "latest means the latest that is whole"
    )
    assert "still copied" in reason(repository, "sface", 2)
    seal(root / "sface" / "2")
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface").version == 2


def _flip(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")


def _not_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(tensor for tensor in state.values() if tensor.is_floating_point()).fill_(torch.nan)
    save_file(state, folder / "model.safetensors")
    seal(folder)


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "corrupted": (_flip, ManifestError, "does not match its manifest"),
    "half-copied": (
        lambda f: (f / "model.safetensors").write_bytes(b"half"),
        ManifestError,
        "has 4 bytes",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ManifestError, "still copied"),
    "gone": (lambda f: shutil.rmtree(f), Exception, "it has no weights"),
    "NaN": (_not_finite, LoadError, "NaN or infinity"),
    "wrong dims": (
        lambda f: configure(f.parents[1], "sface", "dims: [ 128 ]", "dims: [ 64 ]"),
        WarmupError,
        "output.dims [64]",
    ),
    "broken config": (
        lambda f: configure(f.parents[1], "sface", "max_batch_size", "max_batch_sise"),
        ConfigError,
        "max_batch_sise",
    ),
    "no config": (lambda f: (f.parent / "config.pbtxt").unlink(), ConfigError, "cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_old_version_serves_on_when_the_new_one_fails(
    root: Path, open_repository: Open, kind: str
) -> None:
    damage, cause, said = BROKEN[kind]
    folder = add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    old = repository.catalogue.resolve("sface")
    before = embed(old)
    damage(folder)
    error = failure(repository, "sface")
    assert said in error.message
    if kind != "gone":
        assert isinstance(error.__cause__, cause)
    assert repository.catalogue.resolve("sface").slot is old.slot
    assert np.array_equal(embed(old), before)
    told = line(repository, "sface", 1)
    assert told.state is State.READY
    assert said in told.reason
    assert repository.catalogue.unready(["sface"], strict=True) == {}


def test_repaired_model_loads_and_the_reason_is_gone(root: Path, open_repository: Open) -> None:
    folder = add_version(root, "sface", 1)
    _flip(folder)
    repository = open_repository(names=("sface",))
    assert list(repository.catalogue.unready([], strict=True)) == ["sface"]
    add_version(root, "sface", 1)
    repository.loader.load("sface").result(SECONDS)
    assert line(repository, "sface", 1).reason == ""
    assert repository.catalogue.unready(["sface"], strict=True) == {}


def test_failed_load_leaves_no_slot_and_no_network_behind(
    root: Path, open_repository: Open, scheduler: Scheduler
) -> None:
    add_version(root, "sface", 1)
    configure(root, "sface", "dims: [ 128 ]", "dims: [ 64 ]")
    repository = open_repository(names=("sface",))
    error = failure(repository, "sface")
    cause = error.__cause__
    frame = cause.__traceback__ if cause else None
    while frame:
        assert "instance" not in frame.tb_frame.f_locals, "the error holds the network"
        frame = frame.tb_next
    assert scheduler._dispatcher.slots == []


def test_unloaded_model_is_not_ready_and_can_be_loaded_again(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    repository.loader.unload("sface").result(SECONDS)
    with pytest.raises(ModelNotReady, match=r"version 1: it (has been unloaded|takes no)"):
        repository.catalogue.resolve("sface", role=EMBEDDER)
    assert repository.catalogue.drained(SECONDS)
    repository.loader.unload("sface").result(SECONDS)
    assert repository.catalogue.unready([], strict=True) == {}, "nobody wants it any more"
    repository.loader.load("sface").result(SECONDS)
    assert embed(repository.catalogue.resolve("sface")).shape == (128,)


def test_model_that_appears_later_is_in_the_index_and_loads(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    (root / "sface").rename(tmp_path / "sface")
    repository = open_repository(names=())
    assert ("sface", 0) not in states(repository)
    (tmp_path / "sface").rename(root / "sface")
    assert line(repository, "sface").state is State.UNKNOWN
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface").version == 1


class Killer:
    """A row that kills the executor that looks at it."""

    @property
    def image(self) -> None:
        raise SystemExit("killed")


def test_broken_slot_is_unavailable_and_loading_again_repairs_it(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    broken = repository.catalogue.resolve("sface")
    for _ in range(3):
        broken.slot.submit(Work(rows=[Killer()])).exception(SECONDS)
    assert "died in it" in reason(repository, "sface", 1)
    assert "sface" in repository.catalogue.unready(["sface"], strict=False)
    with pytest.raises(ModelNotReady, match="died in it"):
        repository.catalogue.resolve("sface")
    repository.loader.load("sface").result(SECONDS)
    assert embed(repository.catalogue.resolve("sface")).shape == (128,)
    assert repository.catalogue.drained(SECONDS)


def test_missing_candidate_fails_the_load_and_the_rest_serves(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 2)
    repository = open_repository(names=("sface",))
    assert reason(repository, "sface", 2) == "shadow_version names it, but it has no folder"
    assert repository.catalogue.resolve("sface").version == 1
