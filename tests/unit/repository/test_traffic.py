"""Unversioned calls are shared among versions as the parameters say, and counted."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mien_server.errors import ModelNotReady
from mien_server.models.roles import EMBEDDER
from mien_server.repository.config.model import ConfigError, ModelConfig
from mien_server.repository.traffic import Traffic, TrafficCounter
from tests.unit.repository.folders import Open, add_version, keep_versions, parameter, traffic

Read = Callable[[str], ModelConfig]


def draw() -> random.Random:
    return random.Random(0)  # noqa: S311


def parameters(**values: object) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in values.items()
    )


TWO = "version_policy { latest { num_versions: 2 } }\n"
THREE = "version_policy { latest { num_versions: 3 } }\n"


def test_without_candidates_the_highest_version_answers() -> None:
    assert Traffic().choose([1, 3, 2], draw()) == 3
    assert Traffic().choose([], draw()) == 0


def test_canary_gets_its_share_and_the_highest_other_version_the_rest() -> None:
    traffic, chance = Traffic(canary_version=3, canary_percent=10), draw()
    chosen = Counter(traffic.choose([1, 2, 3], chance) for _ in range(10_000))
    assert set(chosen) == {2, 3}
    assert 900 < chosen[3] < 1100


@pytest.mark.parametrize(("percent", "chosen"), [(0, 2), (100, 3)])
def test_canary_of_none_and_of_all(percent: float, chosen: int) -> None:
    traffic, chance = Traffic(canary_version=3, canary_percent=percent), draw()
    assert {traffic.choose([2, 3], chance) for _ in range(1000)} == {chosen}


def test_canary_that_is_not_ready_gets_nothing_and_alone_it_gets_all() -> None:
    traffic, chance = Traffic(canary_version=3, canary_percent=50), draw()
    assert {traffic.choose([1, 2], chance) for _ in range(100)} == {2}
    assert {traffic.choose([3], chance) for _ in range(100)} == {3}


def test_canary_is_never_chosen_without_a_draw() -> None:
    assert Traffic(canary_version=3, canary_percent=100).choose([2, 3], None) == 2


def test_shadow_answers_nothing() -> None:
    traffic = Traffic(shadow_version=3)
    assert traffic.choose([1, 2, 3], draw()) == 2
    assert traffic.choose([3], draw()) == 0


def test_canary_may_be_the_lower_version() -> None:
    traffic, chance = Traffic(canary_version=1, canary_percent=50), draw()
    assert {traffic.choose([1, 2], chance) for _ in range(100)} == {1, 2}


def test_parameters_are_read(read: Read, embedder: str) -> None:
    text = embedder + THREE + parameters(canary_version=2, canary_percent="0.5", shadow_version=3)
    assert read(text).traffic == Traffic(2, 0.5, 3)
    lowest = TWO + parameters(canary_version=1, canary_percent=100)
    assert read(embedder + lowest).traffic == Traffic(1, 100)
    assert read(embedder + TWO + parameters(shadow_version=1)).traffic == Traffic(shadow_version=1)
    assert read(embedder).traffic == Traffic()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO + parameters(canary_version=2), "canary_percent: is missing"),
        (parameters(canary_percent=5), "canary_version is missing"),
        (TWO + parameters(canary_version=0, canary_percent=5), "canary_version: is 0; must be at"),
        (TWO + parameters(canary_version=2, canary_percent=101), "must be in [0, 100]"),
        (TWO + parameters(canary_version="two", canary_percent=5), "is no whole number"),
        (
            THREE + parameters(canary_version=2, canary_percent=5, shadow_version=2),
            "shadow_version: 2 is the canary_version already",
        ),
        (parameters(shadow_version=2), "version_policy { latest { num_versions: 2 } }"),
        (
            TWO + parameters(canary_version=2, canary_percent=5, shadow_version=3),
            "version_policy { latest { num_versions: 3 } }",
        ),
        (
            "version_policy { specific { versions: [ 1, 2 ] } }\n" + parameters(shadow_version=3),
            "is 3, which version_policy does not load",
        ),
        (
            "version_policy { specific { versions: [ 2 ] } }\n" + parameters(shadow_version=2),
            "needs a version beside it",
        ),
    ],
)
def test_parameters_that_cannot_hold_are_refused(
    read: Read, embedder: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(embedder + text)
    assert said in str(caught.value)
    assert caught.value.field.startswith("parameters.")


def test_calls_are_counted_by_the_version_that_answers(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "canary_version", 2)
    parameter(root, "sface", "canary_percent", 25)
    repository = open_repository(names=("sface",))
    seen: Counter[int] = Counter()
    for _ in range(400):
        with repository.catalogue.lease("sface", role=EMBEDDER) as (model, _):
            seen[model.version] += 1
    assert 70 < seen[2] < 130
    with repository.catalogue.lease("sface", 2) as (model, _):
        assert model.version == 2
    assert traffic(repository.catalogue, "sface").routed == seen, (
        "calls that name a version do not count"
    )
    assert repository.catalogue.resolve("sface").version == 1


def test_unversioned_call_can_ask_for_the_version_that_made_an_embedding(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=("sface",))
    old = repository.catalogue.resolve("sface", 1).fingerprint
    with repository.catalogue.lease("sface", fingerprint=old) as (model, _):
        assert model.version == 1
    with repository.catalogue.lease("sface", fingerprint="of nobody") as (model, _):
        assert model.version == 2


def test_changed_share_takes_effect_without_loading_again(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    keep_versions(root, "sface", 2)
    repository = open_repository(names=("sface",))
    slots = [repository.catalogue.resolve("sface", version).slot for version in (1, 2)]
    parameter(root, "sface", "canary_version", 2)
    parameter(root, "sface", "canary_percent", 0)
    repository.loader.load("sface").result(60)
    with repository.catalogue.lease("sface") as (model, _):
        assert model.version == 1
    assert [repository.catalogue.resolve("sface", version).slot for version in (1, 2)] == slots


def test_shadow_goes_with_unversioned_calls_only(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 2)
    repository = open_repository(names=("sface",))
    with repository.catalogue.lease("sface") as (model, shadow):
        assert model.version == 1
        assert shadow is not None
        assert shadow.version.model.version == 2
    for version in (1, 2):
        with repository.catalogue.lease("sface", version) as (model, shadow):
            assert (model.version, shadow) == (version, None)


def test_shadow_alone_is_not_ready(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 2)
    keep_versions(root, "sface", 2)
    parameter(root, "sface", "shadow_version", 2)
    repository = open_repository(names=("sface",))
    with pytest.raises(ModelNotReady, match="version 2: it is the shadow"):
        repository.catalogue.resolve("sface")
    assert repository.catalogue.resolve("sface", 2).version == 2


def test_counts_are_handed_out_as_copies() -> None:
    counter = TrafficCounter()
    counter.route(1)
    counter.shadow(2, compared=3, agreed=2)
    counter.shadow(2, failed=1, dropped=4)
    copy = counter.copy()
    counter.route(1)
    counter.shadow(2, compared=1)
    assert copy.routed == {1: 1}
    shadow = copy.shadows[2]
    assert (shadow.compared, shadow.agreed, shadow.failed, shadow.dropped) == (3, 2, 1, 4)
