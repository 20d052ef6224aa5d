"""What the catalogue says of versions that come and go: without files, networks or loads."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady
from mien_server.models.interface import TensorSpec
from mien_server.models.roles import DETECTOR, EmbedderOptions
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.ensembles import EnsembleConfig, EnsembleStep
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.manifest import ManifestError
from mien_server.repository.traffic import Traffic
from mien_server.repository.versions import LoadedVersion, ReadyModel, State
from mien_server.scheduling.interface import Instance, PlacedInstance
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.repository.folders import SECONDS

BROKEN = {2: ManifestError("it is half copied")}


@pytest.fixture
def config(read: Callable[[str], ModelConfig], embedder: str) -> ModelConfig:
    return read(embedder)


@pytest.fixture
def catalogue() -> Catalogue:
    catalogue = Catalogue()
    catalogue.list_models(["model"])
    return catalogue


@pytest.fixture
def made(scheduler: Scheduler, config: ModelConfig) -> "Made":
    return Made(scheduler, config)


class Made:
    """Versions as a load would hand them over.

    Attributes:
        freed: the fingerprints of those that were freed, in turn.
    """

    def __init__(self, scheduler: Scheduler, config: ModelConfig) -> None:
        self.freed: list[str] = []
        self._scheduler = scheduler
        self._config = config

    def version(self, number: int, fingerprint: str = "", **changes: Any) -> LoadedVersion:
        config = replace(self._config, **changes)
        placed = [PlacedInstance(cast(Instance, None), "cpu")]
        slot = self._scheduler.open_slot(config.name, number, config.batching, placed)
        name = fingerprint or f"print {number}"
        return LoadedVersion(
            ReadyModel(config.name, number, name, config, slot), {}, lambda: self.freed.append(name)
        )


def lines(catalogue: Catalogue) -> dict[int, tuple[State, str]]:
    return {status.version: (status.state, status.reason) for status in catalogue.statuses()}


def test_lease_holds_the_version_and_its_shadow_until_it_ends(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    config = replace(config, traffic=Traffic(shadow_version=2))
    catalogue.swap(config, None, {1: made.version(1), 2: made.version(2)}, {})
    with catalogue.lease("model") as (model, shadow):
        assert model.version == 1
        assert shadow is not None
        assert shadow.version.model.version == 2
        catalogue.withdraw("model")
        assert not catalogue.drained(0.02)
        assert made.freed == []
    assert catalogue.drained(SECONDS)
    assert sorted(made.freed) == ["print 1", "print 2"]


def test_lease_that_ends_with_an_error_frees_all_the_same(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    catalogue.swap(config, None, {1: made.version(1)}, {})

    def fail() -> None:
        with catalogue.lease("model"):
            catalogue.withdraw("model")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert catalogue.drained(SECONDS)


def test_shadow_that_a_given_embedding_asks_for_gets_no_copies_of_its_own_rows(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    config = replace(config, traffic=Traffic(shadow_version=2))
    catalogue.swap(config, None, {1: made.version(1), 2: made.version(2)}, {})
    with catalogue.lease("model", fingerprint="print 2") as (model, shadow):
        assert (model.version, shadow) == (2, None)
    catalogue.withdraw("model")
    assert catalogue.drained(SECONDS), "it was held once, and let go once"


def test_of_several_versions_that_made_an_embedding_the_highest_answers(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    versions = {n: made.version(n, "same" if n < 3 else "") for n in (1, 2, 3)}
    catalogue.swap(config, None, versions, {})
    with catalogue.lease("model", fingerprint="same") as (model, _):
        assert model.version == 2
    with catalogue.lease("model", 1, fingerprint="print 3") as (model, _):
        assert model.version == 1, "a version that is named comes first"


def test_looking_is_not_counted_and_never_gets_the_canary(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    config = replace(config, traffic=Traffic(canary_version=2, canary_percent=100))
    catalogue.swap(config, None, {1: made.version(1), 2: made.version(2)}, {})
    assert catalogue.resolve("model").version == 1
    with catalogue.lease("model") as (model, _):
        assert model.version == 2
    for figures in catalogue.statistics():
        assert figures.traffic is not None
        assert figures.traffic.routed == {2: 1}


def test_version_asked_for_is_told_its_own_reasons_only(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    failures = {**BROKEN, 3: ManifestError("it is no file")}
    catalogue.swap(config, None, {1: made.version(1)}, failures)
    with pytest.raises(ModelNotReady) as caught:
        catalogue.resolve("model", 2)
    assert caught.value.message == "model 'model' is not ready: version 2: it is half copied"
    assert caught.value.lasting
    with pytest.raises(ModelNotFound) as unknown:
        catalogue.resolve("model", 4)
    assert unknown.value.message == "model 'model' has no version 4; its versions: 1, 2, 3"
    catalogue.withdraw("model")
    assert catalogue.drained(SECONDS)
    with pytest.raises(ModelNotReady) as none:
        catalogue.resolve("model")
    assert none.value.message == "model 'model' is not ready: version 1: it has been unloaded"


def test_model_none_of_which_answers_tells_the_reasons_of_all(
    catalogue: Catalogue, config: ModelConfig
) -> None:
    catalogue.swap(config, None, {}, {1: ManifestError("it is no file"), **BROKEN})
    with pytest.raises(ModelNotReady) as caught:
        catalogue.resolve("model")
    assert caught.value.message == (
        "model 'model' is not ready: version 1: it is no file; version 2: it is half copied"
    )


def test_version_that_is_being_loaded_is_worth_trying_again_soon(catalogue: Catalogue) -> None:
    with catalogue.loading("model"):
        with pytest.raises(ModelNotReady, match="it is being loaded") as caught:
            catalogue.resolve("model", 7)
        assert not caught.value.lasting
        assert lines(catalogue) == {0: (State.LOADING, "it is being loaded")}
        assert catalogue.idle() == []
        catalogue.begin("model", 2)
        assert lines(catalogue) == {2: (State.LOADING, "it is being loaded")}
    assert catalogue.idle() == ["model"]


def test_model_of_which_one_version_failed_and_another_is_being_loaded_is_worth_trying_again(
    catalogue: Catalogue, config: ModelConfig
) -> None:
    catalogue.swap(config, None, {}, BROKEN)
    catalogue.begin("model", 3)
    with pytest.raises(ModelNotReady) as caught:
        catalogue.resolve("model")
    assert not caught.value.lasting


def test_swap_that_would_leave_no_answer_changes_nothing_and_frees_what_was_loaded(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    old = made.version(1, "old")
    catalogue.swap(config, "old text", {1: old}, {})
    shadowed = replace(config, options=EmbedderOptions(0.5), traffic=Traffic(shadow_version=1))
    catalogue.swap(shadowed, "new text", {1: made.version(1, "new")}, BROKEN)
    assert catalogue.drained(SECONDS)
    assert made.freed == ["new"]
    assert catalogue.resolve("model") is old.model
    assert old.model.config == config
    assert catalogue.message("model") == "old text"
    assert lines(catalogue) == {
        1: (State.READY, ""),
        2: (State.UNAVAILABLE, "it is half copied"),
    }
    assert catalogue.unready(["model"], strict=True) == {}


def test_version_whose_replacement_failed_keeps_its_config_and_its_text(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    one, two = made.version(1), made.version(2)
    catalogue.swap(config, "old text", {1: one, 2: two}, {})
    changed = replace(config, options=EmbedderOptions(0.5))
    catalogue.swap(changed, "new text", {1: one, 2: two}, BROKEN)
    assert catalogue.resolve("model", 1).config.options.match_threshold == 0.5
    assert catalogue.message("model", 1) == "new text"
    assert catalogue.resolve("model", 2).config.options.match_threshold is None
    assert catalogue.message("model", 2) == catalogue.message("model") == "old text"
    assert lines(catalogue)[2] == (
        State.READY,
        "it serves on; loading it again failed: it is half copied",
    )
    assert made.freed == []


def test_replaced_version_is_unloading_while_a_call_holds_it(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    catalogue.swap(config, None, {1: made.version(1)}, {})
    unloading = (State.UNLOADING, "it takes no new calls; the last that hold it still run")
    with catalogue.lease("model"):
        catalogue.swap(config, None, {2: made.version(2)}, {})
        assert lines(catalogue) == {1: unloading, 2: (State.READY, "")}
        catalogue.fail("model", "config.pbtxt is gone")
        assert lines(catalogue)[1] == unloading
    assert catalogue.drained(SECONDS)
    assert lines(catalogue) == {
        1: (State.UNAVAILABLE, "it has been unloaded"),
        2: (State.READY, "it serves on; loading it again failed: config.pbtxt is gone"),
    }


def test_version_replaced_twice_is_unloading_until_both_are_freed(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    catalogue.swap(config, None, {1: made.version(1, "first")}, {})
    with catalogue.lease("model"):
        catalogue.swap(config, None, {1: made.version(1, "second")}, {})
        catalogue.withdraw("model")
        while made.freed != ["second"]:
            assert not catalogue.drained(0.01)
        assert lines(catalogue)[1][0] is State.UNLOADING
    assert catalogue.drained(SECONDS)
    assert lines(catalogue) == {1: (State.UNAVAILABLE, "it has been unloaded")}


def test_version_that_does_not_free_is_let_go_all_the_same(
    catalogue: Catalogue, config: ModelConfig, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = made.version(1)
    stubborn.close = lambda: 1 / 0  # type: ignore[assignment]
    catalogue.swap(config, None, {1: stubborn}, {})
    catalogue.withdraw("model")
    assert catalogue.drained(SECONDS)
    (told,) = [each for each in caplog.records if each.getMessage() == "the model did not unload"]
    assert (vars(told)["model"], vars(told)["version"]) == ("model", 1)


def test_freeing_is_no_work_of_whoever_lets_go_last(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    threads: list[threading.Thread] = []
    version = made.version(1)
    version.close = lambda: threads.append(threading.current_thread())
    catalogue.swap(config, None, {1: version}, {})
    with catalogue.lease("model"):
        catalogue.withdraw("model")
    assert catalogue.drained(SECONDS)
    assert threads != [threading.current_thread()]


def test_model_that_is_gone_stays_as_long_as_something_of_it_does(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    with catalogue.loading("model"):
        assert catalogue.list_models([]) == ["model"]
        catalogue.swap(config, None, {1: made.version(1)}, {})
    assert catalogue.list_models([]) == ["model"]
    assert catalogue.idle() == ["model"]
    with catalogue.lease("model"):
        catalogue.withdraw("model")
        assert catalogue.list_models([]) == ["model"]
    assert catalogue.drained(SECONDS)
    assert catalogue.list_models([]) == []
    with pytest.raises(ModelNotFound, match="there is no model 'model'; the models are: none"):
        catalogue.withdraw("model")


def test_model_without_weights_is_known_for_what_it_would_be(
    catalogue: Catalogue, config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.fail("model", "it has no weights", lacking=config)
    with pytest.raises(InvalidRequest, match="an embedding model, where a detector is needed"):
        catalogue.resolve("model", role=DETECTOR)
    assert catalogue.unready([], strict=True) == {}, "it is a choice"
    assert catalogue.unready(["model"], strict=False) == {"model": "it has no weights"}
    assert not caplog.records, "nor is it worth a warning"


def test_model_that_lost_its_weights_serves_on_with_a_warning(
    catalogue: Catalogue, config: ModelConfig, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.swap(config, None, {1: made.version(1)}, {})
    catalogue.fail("model", "it has no weights", lacking=config)
    (told,) = caplog.records
    assert told.getMessage() == "the model cannot be loaded: it has no weights"
    assert vars(told)["model"] == "model"
    version = catalogue.resolve("model")
    version.slot.state.broken = "executors died in it"
    assert catalogue.unready([], strict=True) == {"model": "version 1: executors died in it"}


def test_what_nobody_asked_for_does_not_keep_a_strict_server_from_being_ready(
    catalogue: Catalogue,
) -> None:
    assert catalogue.unready([], strict=True) == {}
    assert catalogue.unready(["model", "nobody"], strict=False) == {
        "model": "nobody has asked for it to be loaded",
        "nobody": "there is no such model",
    }
    catalogue.fail("model", "config.pbtxt:1: is no file")
    assert catalogue.unready([], strict=False) == {}
    assert catalogue.unready([], strict=True) == {"model": "config.pbtxt:1: is no file"}


def chain(name: str = "chain") -> EnsembleConfig:
    """An ensemble whose detector is nowhere."""
    return EnsembleConfig(
        name=name,
        detector=EnsembleStep("nobody"),
        embedder=EnsembleStep("model"),
        max_batch_size=4,
        inputs=(TensorSpec("image", "TYPE_STRING", (1,)),),
        outputs=(TensorSpec("embedding", "TYPE_FP32", (128,)),),
        values={"embedding": "embedding"},
    )


def test_ensemble_that_cannot_answer_does_not_replace_a_model_that_does(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    catalogue.swap(config, None, {1: made.version(1)}, {})
    problem = catalogue.swap_ensemble(chain("model"), None)
    assert problem == "there is no model 'nobody'; the models are: model"
    assert catalogue.resolve("model").version == 1
    assert catalogue.ensemble("model") is None
    assert lines(catalogue)[1] == (
        State.READY,
        f"it serves on; loading it again failed: {problem}",
    )


def test_ensemble_takes_the_place_of_a_model_that_does_not_answer(
    catalogue: Catalogue, config: ModelConfig, made: Made
) -> None:
    catalogue.swap(config, None, {1: made.version(1)}, {})
    catalogue.resolve("model").slot.state.broken = "executors died in it"
    assert catalogue.swap_ensemble(chain("model"), "text")
    assert catalogue.drained(SECONDS)
    assert made.freed == ["print 1"]
    with pytest.raises(ModelNotReady, match="ensemble 'model' is not ready: there is no model"):
        catalogue.message("model")


def test_ensemble_has_one_version_and_is_a_model_to_nobody_else(catalogue: Catalogue) -> None:
    catalogue.list_models(["chain"])
    catalogue.swap_ensemble(chain(), "text")
    with pytest.raises(ModelNotFound, match="ensemble 'chain' has no version 2; its versions: 1"):
        catalogue.ensemble("chain", 2)
    with pytest.raises(InvalidRequest, match="model 'chain' is an ensemble of models"):
        catalogue.resolve("chain")
