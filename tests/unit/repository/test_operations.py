"""Loads and unloads run beside the calls, one after the other, and end when the server does."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mien_server.errors import ModelNotReady, Reason, Unmet
from mien_server.repository import loading
from mien_server.repository.operations import Operations
from mien_server.repository.versions import State
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    add_version,
    embed,
    keep_versions,
    line,
    reason,
    states,
)


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

    monkeypatch.setattr("mien_server.repository.loader.load_version", wait_and_load)
    yield gate
    gate.open.set()


def test_state_is_loading_while_it_loads_and_lookups_do_not_wait(
    root: Path, open_repository: Open, gate: Gate
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    assert line(repository, "sface").state is State.UNKNOWN
    loading = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    assert line(repository, "sface", 1).state is State.LOADING
    with pytest.raises(ModelNotReady, match="version 1: it is being loaded") as caught:
        repository.catalogue.resolve("sface")
    assert not caught.value.lasting
    gate.open.set()
    loading.result(SECONDS)
    assert line(repository, "sface", 1).state is State.READY


def test_of_the_operations_that_wait_the_newest_wins(
    root: Path, open_repository: Open, gate: Gate
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    running = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    first = repository.loader.unload("sface")
    second = repository.loader.load("sface")
    same = repository.loader.load("sface")
    last = repository.loader.unload("sface")
    for superseded in (first, second, same):
        with pytest.raises(Unmet, match=r"a later \w+ took its place") as caught:
            superseded.result(SECONDS)
        assert caught.value.reason is Reason.MODEL_CONTROL_REFUSED
    assert not last.done(), "the one that runs comes to its next step first"
    gate.open.set()
    with pytest.raises(Unmet, match="the load of model 'sface' was ended: a later unload"):
        running.result(SECONDS)
    last.result(SECONDS)
    assert gate.passed == 1
    assert reason(repository, "sface") == "it has been unloaded"


def test_loads_that_wait_share_one_load(root: Path, open_repository: Open, gate: Gate) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    running = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    waiting = [repository.loader.load("sface") for _ in range(10)]
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
            operation = repository.loader.unload if (seed + turn) % 2 else repository.loader.load
            error = operation("sface").exception(SECONDS)
            assert error is None or "took its place" in str(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.drained(SECONDS)
    assert embed(repository.catalogue.resolve("sface")).shape == (128,)
    assert states(repository)["sface", 1] is State.READY


@pytest.mark.long
def test_every_lease_is_answered_while_the_model_comes_and_goes(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    stop = threading.Event()
    answers: list[int] = []
    faults: list[Exception] = []

    def call_on() -> None:
        while not stop.is_set():
            try:
                with repository.catalogue.lease("sface") as (model, _):
                    answers.append(embed(model).shape[0])
            except ModelNotReady:
                stop.wait(0.001)
            except Exception as error:
                faults.append(error)
                return

    callers = [threading.Thread(target=call_on) for _ in range(4)]
    for caller in callers:
        caller.start()
    for turn in range(10):
        repository.loader.unload("sface").result(SECONDS)
        add_version(root, "sface", 1, seed=turn)
        repository.loader.load("sface").result(SECONDS)
        with repository.catalogue.lease("sface") as (model, _):
            embed(model)
    stop.set()
    for caller in callers:
        caller.join()
    assert faults == []
    assert set(answers) == {128}
    assert repository.catalogue.drained(SECONDS)


def test_slow_model_does_not_hold_up_another(root: Path, open_repository: Open, gate: Gate) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    slow = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    repository.loader.unload("retinaface").result(SECONDS)
    assert not slow.done()


def test_four_models_are_loaded_at_a_time(root: Path, open_repository: Open, gate: Gate) -> None:
    text = (root / "sface" / "config.pbtxt").read_text()
    names = [f"sface{number}" for number in range(5)]
    for name in names:
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text.replace('name: "sface"', ""))
    repository = open_repository(names=())
    loads = [repository.loader.load(name) for name in names]
    for _ in range(4):
        assert gate.reached.acquire(timeout=SECONDS)
    assert not gate.reached.acquire(timeout=0.1), "the fifth waits"
    gate.open.set()
    for load in loads:
        with pytest.raises(Unmet, match=r"manifest\.json is missing"):
            load.result(SECONDS)


def test_shutdown_ends_loading_after_the_version_under_way(
    root: Path, open_repository: Open, gate: Gate, scheduler: Scheduler
) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=())
    running = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    waiting = repository.loader.unload("sface")
    assert not repository.loader.close(timeout=0.05), "it says that a load still runs"
    with pytest.raises(Draining):
        waiting.result(SECONDS)
    with pytest.raises(Draining):
        repository.loader.load("sface")
    gate.open.set()
    assert repository.loader.close(SECONDS)
    with pytest.raises(Draining):
        running.result(SECONDS)
    assert gate.passed == 1
    assert scheduler._dispatcher.slots == [], "what it had loaded is freed"


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_are_controlled_on_request_only_in_the_explicit_mode(
    root: Path, open_repository: Open, mode: str
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(mode=mode)
    for operation in (repository.loader.load, repository.loader.unload):
        with pytest.raises(Unmet, match=f"--model-control-mode is {mode}, not explicit") as caught:
            operation("sface")
        assert caught.value.reason is Reason.MODEL_CONTROL_REFUSED
    assert repository.catalogue.resolve("sface").version == 1


def test_shutdown_ends_a_warm_up_at_its_next_batch(
    root: Path, open_repository: Open, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler
) -> None:
    add_version(root, "sface", 1)
    with (root / "sface" / "config.pbtxt").open("a") as file:
        file.write(
            'model_warmup { name: "for ever" batch_size: 1 count: 100 inputs { key: "face" value'
            " { data_type: TYPE_UINT8 dims: [ 3, 112, 112 ] zero_data: true } } }"
        )
    repository = open_repository(names=())
    batches, go_on = threading.Semaphore(0), threading.Event()

    def count(*arguments: object, **facts: object) -> None:
        batches.release()
        assert go_on.wait(SECONDS)

    monkeypatch.setattr(loading._log, "info", count)
    running = repository.loader.load("sface")
    assert batches.acquire(timeout=SECONDS)
    assert not repository.loader.close(timeout=0)
    go_on.set()
    assert repository.loader.close(SECONDS)
    assert not batches.acquire(blocking=False), "the rest of its hundred did not run"
    with pytest.raises(Draining):
        running.result(SECONDS)
    assert scheduler._dispatcher.slots == []


def test_shutdown_does_not_make_callers_wait_for_the_next_step(
    root: Path, open_repository: Open, gate: Gate
) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=())
    running = repository.loader.load("sface")
    assert gate.reached.acquire(timeout=SECONDS)
    assert not repository.loader.close(timeout=0)
    with pytest.raises(Draining):
        running.result(SECONDS)
    gate.open.set()
    assert repository.loader.close(SECONDS)


@pytest.mark.parametrize(("later", "ends"), [("unload", True), ("load", False)])
def test_operation_that_runs_ends_at_its_next_step_for_one_of_another_kind(
    later: str, ends: bool
) -> None:
    operations = Operations()
    began, step = threading.Event(), threading.Event()

    def work() -> None:
        operations.stop_if_asked("sface")
        began.set()
        assert step.wait(SECONDS)
        operations.stop_if_asked("sface")

    running = operations.submit("sface", "load", work)
    assert began.wait(SECONDS)
    newer = operations.submit("sface", later, lambda: None)
    other = operations.submit("retinaface", "unload", lambda: None)
    other.result(SECONDS)
    step.set()
    if ends:
        with pytest.raises(Unmet, match="the load of model 'sface' was ended: a later unload"):
            running.result(SECONDS)
    else:
        running.result(SECONDS)
    newer.result(SECONDS)
    assert operations.close(SECONDS)
