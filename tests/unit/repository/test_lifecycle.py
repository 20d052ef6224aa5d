"""Versions are replaced beside those that serve, held by their calls, and freed after the last one."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from mien_server.backends.pytorch import LoadError
from mien_server.errors import MienError, ModelNotFound, ModelNotReady, Reason, Unmet
from mien_server.models.interface import EmbedderRow
from mien_server.repository import loading
from mien_server.repository.loading import WarmupError
from mien_server.repository.manifest import ManifestError
from mien_server.repository.pbtxt import ConfigError
from mien_server.repository.repository import ModelRepository
from mien_server.repository.versions import ReadyModel, State
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.repository.folders import (
    Open,
    add_version,
    configure,
    keep_versions,
    line,
    parameter,
    reason,
    seal,
    states,
)

CROP = np.zeros((112, 112, 3), np.uint8)
SECONDS = 60


class Gate:
    """Holds loads back until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.open = threading.Event()
        self.passed = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """From now on, every version waits at the gate before it is loaded."""
    gate = Gate()

    def wait_and_load(*arguments: Any, **options: Any) -> Any:
        gate.reached.release()
        assert gate.open.wait(SECONDS)
        gate.passed += 1
        return loading.load_version(*arguments, **options)

    monkeypatch.setattr("mien_server.repository.repository.load_version", wait_and_load)
    yield gate
    gate.open.set()


def embed(model: ReadyModel) -> Any:
    return model.slot.submit([EmbedderRow(CROP)]).result(SECONDS).results[0]


def failure(repository: ModelRepository, name: str) -> MienError:
    """The error that loading a model again ends with."""
    with pytest.raises(Unmet) as caught:
        repository.load(name).result(SECONDS)
    assert caught.value.reason is Reason.MODEL_LOAD_FAILED
    return caught.value


def test_new_version_takes_over_and_the_old_one_is_freed(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    old = repository.resolve("sface")
    add_version(root, "sface", 2, seed=2)
    repository.load("sface").result(SECONDS)
    assert repository.resolve("sface").version == 2
    assert repository.drained(SECONDS)
    with pytest.raises(Draining, match="sface version 1 has been unloaded"):
        embed(old)
    assert not hasattr(old.slot.instances[0].instance, "_engine"), "its network is gone"
    assert reason(repository, "sface", 1) == "it has been unloaded"


def test_version_stays_loaded_while_a_call_holds_it(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    with repository.lease("sface", task="embed") as held:
        before = embed(held)
        add_version(root, "sface", 2, seed=2)
        repository.load("sface").result(SECONDS)
        with repository.lease("sface") as new:
            assert new.version == 2
        assert line(repository, "sface", 1).state is State.UNLOADING
        assert not repository.drained(0.05)
        assert np.array_equal(embed(held), before)
        with pytest.raises(ModelNotReady, match="version 1: it takes no new calls"):
            repository.resolve("sface", 1)
    assert repository.drained(SECONDS)
    assert states(repository)["sface", 1] is State.UNAVAILABLE


def test_last_of_several_calls_frees_the_version(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    with ExitStack() as last:
        last.enter_context(repository.lease("sface"))
        with repository.lease("sface"):
            repository.unload("sface").result(SECONDS)
            assert line(repository, "sface", 1).state is State.UNLOADING
        assert not repository.drained(0.05)
    assert repository.drained(SECONDS)


def test_changed_files_of_a_version_replace_it(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    old = repository.resolve("sface")
    with repository.lease("sface") as held:
        add_version(root, "sface", 1, seed=7)
        repository.load("sface").result(SECONDS)
        new = repository.resolve("sface", 1)
        assert new.fingerprint != old.fingerprint
        assert not np.array_equal(embed(new), embed(held))
        assert states(repository)["sface", 1] is State.READY
    assert repository.drained(SECONDS)


def test_unchanged_version_is_not_loaded_again(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=("sface",))
    slot = repository.resolve("sface").slot
    add_version(root, "sface", 2, seed=2)
    configure(root, "sface", '"0.363"', '"0.4"')
    repository.load("sface").result(SECONDS)
    assert repository.resolve("sface", 1).slot is slot
    assert repository.resolve("sface", 1).config.match_threshold == 0.4
    configure(root, "sface", "max_batch_size: 32", "max_batch_size: 16")
    repository.load("sface").result(SECONDS)
    assert repository.resolve("sface", 1).slot is not slot
    assert repository.resolve("sface", 1).slot.policy.max_batch_size == 16


def test_version_without_its_manifest_is_not_served(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    (add_version(root, "sface", 2) / "manifest.json").unlink()
    repository = open_repository(names=("sface",))
    assert repository.resolve("sface").version == 1, "latest means the latest that is whole"
    assert "still copied" in reason(repository, "sface", 2)
    seal(root / "sface" / "2")
    repository.load("sface").result(SECONDS)
    assert repository.resolve("sface").version == 2


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
    old = repository.resolve("sface")
    before = embed(old)
    damage(folder)
    error = failure(repository, "sface")
    assert said in error.message
    if kind != "gone":
        assert isinstance(error.__cause__, cause)
    assert repository.resolve("sface").slot is old.slot
    assert np.array_equal(embed(old), before)
    told = line(repository, "sface", 1)
    assert told.state is State.READY
    assert said in told.reason
    assert repository.unready(["sface"], strict=True) == {}


def test_repaired_model_loads_and_the_reason_is_gone(root: Path, open_repository: Open) -> None:
    folder = add_version(root, "sface", 1)
    _flip(folder)
    repository = open_repository(names=("sface",))
    assert list(repository.unready([], strict=True)) == ["sface"]
    add_version(root, "sface", 1)
    repository.load("sface").result(SECONDS)
    assert line(repository, "sface", 1).reason == ""
    assert repository.unready(["sface"], strict=True) == {}


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
    assert scheduler._core.slots == []


def test_unloaded_model_is_not_ready_and_can_be_loaded_again(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    repository.unload("sface").result(SECONDS)
    with pytest.raises(ModelNotReady, match=r"version 1: it (has been unloaded|takes no)"):
        repository.resolve("sface", task="embed")
    assert repository.drained(SECONDS)
    repository.unload("sface").result(SECONDS)
    assert repository.unready([], strict=True) == {}, "nobody wants it any more"
    repository.load("sface").result(SECONDS)
    assert embed(repository.resolve("sface")).shape == (128,)


def test_state_is_loading_while_it_loads_and_lookups_do_not_wait(
    root: Path, open_repository: Open, gate: Gate
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    assert line(repository, "sface").state is State.UNKNOWN
    loading = repository.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    assert line(repository, "sface", 1).state is State.LOADING
    with pytest.raises(ModelNotReady, match="version 1: it is being loaded"):
        repository.resolve("sface")
    gate.open.set()
    loading.result(SECONDS)
    assert line(repository, "sface", 1).state is State.READY


def test_of_the_operations_that_wait_the_newest_wins(
    root: Path, open_repository: Open, gate: Gate
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    running = repository.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    first = repository.unload("sface")
    second = repository.load("sface")
    same = repository.load("sface")
    last = repository.unload("sface")
    for superseded in (first, second, same):
        with pytest.raises(Unmet, match=r"a later \w+ took its place") as caught:
            superseded.result(SECONDS)
        assert caught.value.reason is Reason.MODEL_CONTROL_REFUSED
    assert not last.done(), "the one that runs is not disturbed"
    gate.open.set()
    running.result(SECONDS)
    last.result(SECONDS)
    assert repository.drained(SECONDS)
    assert gate.passed == 1
    assert reason(repository, "sface", 1) == "it has been unloaded"


def test_loads_that_wait_share_one_load(root: Path, open_repository: Open, gate: Gate) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    running = repository.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    waiting = [repository.load("sface") for _ in range(10)]
    gate.open.set()
    for future in (running, *waiting):
        future.result(SECONDS)
    assert gate.passed == 2


def test_operations_of_one_model_never_overlap(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    callers = 3

    def hammer(seed: int) -> None:
        for turn in range(12):
            operation = repository.unload if (seed + turn) % 2 else repository.load
            error = operation("sface").exception(SECONDS)
            assert error is None or "took its place" in str(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository.load("sface").result(SECONDS)
    assert repository.drained(SECONDS)
    assert embed(repository.resolve("sface")).shape == (128,)
    assert states(repository)["sface", 1] is State.READY


def test_slow_model_does_not_hold_up_another(root: Path, open_repository: Open, gate: Gate) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    slow = repository.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    repository.unload("retinaface").result(SECONDS)
    assert not slow.done()


def test_shutdown_ends_loading_after_the_version_under_way(
    root: Path, open_repository: Open, gate: Gate, scheduler: Scheduler
) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=())
    running = repository.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    waiting = repository.unload("sface")
    assert not repository.close(timeout=0.05), "it says that a load still runs"
    with pytest.raises(Draining):
        waiting.result(SECONDS)
    with pytest.raises(Draining):
        repository.load("sface")
    gate.open.set()
    assert repository.close(SECONDS)
    with pytest.raises(Draining):
        running.result(SECONDS)
    assert gate.passed == 1
    assert scheduler._core.slots == [], "what it had loaded is freed"


def test_files_that_change_while_they_are_read_are_not_served(
    root: Path, open_repository: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(root, "sface", 1)
    warm_up = loading.warm_up

    def overwrite(*arguments: Any) -> None:
        warm_up(*arguments)
        add_version(root, "sface", 1, seed=3)

    monkeypatch.setattr(loading, "warm_up", overwrite)
    repository = open_repository(names=("sface",))
    assert "changed while it was being loaded" in reason(repository, "sface", 1)


@pytest.mark.parametrize(
    "name", ["../sface", "..", ".", "", "/etc", "sface/1", "sface\0", "nobody"]
)
def test_name_is_no_path(root: Path, open_repository: Open, name: str) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    with pytest.raises(ModelNotFound, match="the models are: arcface, retinaface, sface"):
        repository.load(name).result(SECONDS)
    with pytest.raises(ModelNotFound):
        repository.unload(name).result(SECONDS)


def test_linked_model_outside_of_the_repository_is_refused(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    (root / "sface").rename(tmp_path / "outside")
    (root / "sface").symlink_to(tmp_path / "outside")
    (root / "arcface" / "config.pbtxt").rename(tmp_path / "config.pbtxt")
    (root / "arcface" / "config.pbtxt").symlink_to(tmp_path / "config.pbtxt")
    repository = open_repository()
    for name in ("sface", "arcface"):
        assert "leads out of the repository" in reason(repository, name)


def test_pickle_named_safetensors_is_refused_in_the_index(
    root: Path, open_repository: Open
) -> None:
    folder = add_version(root, "sface", 1)
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    seal(folder)
    assert "not in the safetensors format" in reason(open_repository(), "sface", 1)


def test_onnx_for_the_pytorch_backend_is_refused_in_the_index(
    root: Path, open_repository: Open
) -> None:
    folder = add_version(root, "sface", 1)
    (folder / "model.safetensors").rename(folder / "model.onnx")
    seal(folder)
    repository = open_repository()
    assert "does not list model.safetensors" in reason(repository, "sface", 1)


def test_onnx_with_its_data_elsewhere_is_refused_in_the_index(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    configure(root, "sface", 'backend: "pytorch"', 'backend: "onnxruntime"')
    data = np.zeros((4, 3), np.float32)
    (tmp_path / "weights.bin").write_bytes(data.tobytes())
    weights = onnx.numpy_helper.from_array(data, "weights")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=str(tmp_path / "weights.bin"))
    face = onnx.helper.make_tensor_value_info("face", onnx.TensorProto.FLOAT, [None, 3, 112, 112])
    vector = onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, [4, 3])
    node = onnx.helper.make_node("Identity", ["weights"], ["vector"])
    graph = onnx.helper.make_graph([node], "graph", [face], [vector], initializer=[weights])
    folder = root / "sface" / "1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    seal(folder)
    assert "in another file" in reason(open_repository(), "sface", 1)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_are_controlled_on_request_only_in_the_explicit_mode(
    root: Path, open_repository: Open, mode: str
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode=mode)
    for operation in (repository.load, repository.unload):
        with pytest.raises(Unmet, match=f"--model-control-mode is {mode}, not explicit") as caught:
            operation("sface")
        assert caught.value.reason is Reason.MODEL_CONTROL_REFUSED
    assert repository.resolve("sface").version == 1


def test_model_that_appears_later_is_in_the_index_and_loads(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    (root / "sface").rename(tmp_path / "sface")
    repository = open_repository(names=())
    assert ("sface", 0) not in states(repository)
    (tmp_path / "sface").rename(root / "sface")
    assert line(repository, "sface").state is State.UNKNOWN
    repository.load("sface").result(SECONDS)
    assert repository.resolve("sface").version == 1


def test_broken_slot_is_unavailable_and_loading_again_repairs_it(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    broken = repository.resolve("sface")
    broken.slot.state.broken = "6 executors in a row died in it"
    assert "died in it" in reason(repository, "sface", 1)
    assert "sface" in repository.unready(["sface"], strict=False)
    with pytest.raises(ModelNotReady, match="died in it"):
        repository.resolve("sface")
    repository.load("sface").result(SECONDS)
    assert embed(repository.resolve("sface")).shape == (128,)
    assert repository.drained(SECONDS)


def test_missing_candidate_fails_the_load_and_the_rest_serves(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 2)
    repository = open_repository(names=("sface",))
    assert reason(repository, "sface", 2) == "shadow_version names it, but it has no folder"
    assert repository.resolve("sface").version == 1
