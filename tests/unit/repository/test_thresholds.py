"""A version's own thresholds: each version is judged by its own, and the config's is the fallback."""

import logging
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.manifest import describe, fingerprint, read_manifest
from mien_server.repository.thresholds import Thresholds, judged_by, write_thresholds
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    Opened,
    add_version,
    configure,
    failure,
    keep_versions,
    parameter,
)

CONFIGURED = 0.363


def measured(root: Path, version: int, threshold: float, **changes: Any) -> Path:
    """Puts thresholds beside the weights that they say they were measured with."""
    folder = root / "sface" / str(version)
    config = read_config(root / "sface" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    weights = read_manifest(folder).files["model.safetensors"].sha256
    values = {
        "match_threshold": threshold,
        "thresholds_by_far": ((0.01, threshold),),
        "rule": "FAR 0.01",
        "data": "ours.csv",
        "genuine": 300,
        "impostor": 300,
        "version": version,
        "fingerprint": fingerprint(weights, config.architecture, config.normalisation),
        "created": datetime(2026, 11, 29, tzinfo=UTC),
    }
    write_thresholds(folder, Thresholds(**{**values, **changes}))
    return folder


def threshold(repository: Opened, version: int = 0) -> float:
    found: float = repository.catalogue.resolve("sface", version).config.options.match_threshold
    return found


@pytest.fixture
def both(root: Path) -> Path:
    """A repository with two versions, both of which are served."""
    add_version(root, "sface", 1)
    add_version(root, "sface", 2, seed=2)
    keep_versions(root, "sface", 2)
    return root


def test_each_version_is_judged_by_its_own_threshold(both: Path, open_repository: Open) -> None:
    measured(both, 2, 0.5)
    repository = open_repository(names=("sface",))
    assert (threshold(repository, 1), threshold(repository, 2)) == (CONFIGURED, 0.5)
    by_far = repository.catalogue.resolve("sface", 2).config.options.thresholds_by_far
    assert by_far == ((0.01, 0.5),)
    told = {n: repository.catalogue.message("sface", n).parameters for n in (1, 2)}
    assert told[1]["match_threshold"].string_value == "0.363"
    assert "thresholds_source" not in told[1]
    assert told[2]["match_threshold"].string_value == "0.5"
    assert told[2]["thresholds_by_far"].string_value == "0.01: 0.5"
    assert told[2]["thresholds_source"].string_value == (
        "calibrated on 2026-11-29 with version 2 on 300 + 300 pairs of ours.csv: FAR 0.01"
    )


def test_a_canary_is_judged_by_its_own(both: Path, open_repository: Open) -> None:
    measured(both, 1, 0.4)
    measured(both, 2, 0.6)
    parameter(both, "sface", "canary_version", 2)
    parameter(both, "sface", "canary_percent", 50)
    repository = open_repository(names=("sface",))
    seen = set()
    for _ in range(50):
        with repository.catalogue.lease("sface") as (model, _):
            seen.add((model.version, model.config.options.match_threshold))
    assert seen == {(1, 0.4), (2, 0.6)}


def test_what_is_measured_while_it_serves_holds_from_the_next_load_without_loading_weights(
    both: Path, open_repository: Open
) -> None:
    repository = open_repository(names=("sface",))
    slots = [repository.catalogue.resolve("sface", n).slot for n in (1, 2)]
    folder = measured(both, 1, 0.45)
    repository.loader.load("sface").result(SECONDS)
    assert (threshold(repository, 1), threshold(repository, 2)) == (0.45, CONFIGURED)
    configure(both, "sface", '"0.363"', '"0.3"')
    repository.loader.load("sface").result(SECONDS)
    assert (threshold(repository, 1), threshold(repository, 2)) == (0.45, 0.3)
    (folder / "thresholds.json").unlink()
    repository.loader.load("sface").result(SECONDS)
    assert threshold(repository, 1) == 0.3
    assert [repository.catalogue.resolve("sface", n).slot for n in (1, 2)] == slots


def test_polling_takes_over_what_was_measured(both: Path, open_repository: Open) -> None:
    repository = open_repository(mode="poll")
    measured(both, 2, 0.55)
    wait(repository.loader.poll(), SECONDS)
    assert threshold(repository) == 0.55


def test_thresholds_of_other_weights_are_warned_of_and_not_used(
    both: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    measured(both, 2, 0.9, fingerprint="0" * 16)
    with caplog.at_level(logging.WARNING):
        repository = open_repository(names=("sface",))
    assert threshold(repository, 2) == CONFIGURED
    assert "was measured with fingerprint 0000000000000000" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", '{"match_threshold": 7}'])
def test_a_file_that_is_none_fails_the_version_and_is_named(
    both: Path, open_repository: Open, text: str
) -> None:
    repository = open_repository(names=("sface",))
    (both / "sface" / "2" / "thresholds.json").write_text(text)
    told = str(failure(repository, "sface"))
    assert "sface/2/thresholds.json" in told
    assert "--calibrate" in told
    assert threshold(repository, 2) == CONFIGURED, "what served, serves on"


def test_a_file_that_leads_out_of_the_repository_is_not_read(
    both: Path, open_repository: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "thresholds.json"
    folder = measured(both, 2, 0.5)
    (folder / "thresholds.json").rename(outside)
    (folder / "thresholds.json").symlink_to(outside)
    repository = open_repository(names=("sface",))
    assert repository.catalogue.resolve("sface").version == 1


def test_a_manifest_does_not_list_them(both: Path) -> None:
    folder = measured(both, 1, 0.5)
    made = describe(folder, source="", license_="", created=datetime.now(UTC), importer="")
    assert set(made.files) == {"model.safetensors"}


def test_they_leave_what_the_version_sees(root: Path) -> None:
    add_version(root, "sface", 1)
    parameter(root, "sface", "window", "0, 0, 100")
    config = read_config(root / "sface" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    folder = measured(root, 1, 0.5)
    found = Thresholds.model_validate_json((folder / "thresholds.json").read_bytes())
    options = judged_by(config, found).options
    assert (options.match_threshold, options.crop) == (0.5, config.options.crop)
