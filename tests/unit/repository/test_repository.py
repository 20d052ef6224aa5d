"""The repository loads what it can, says why not of the rest, and finds what requests name."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from mien_server.backends.devices import DeviceError
from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason, at
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorRow, EmbedderRow
from mien_server.repository.loader import RepositoryError
from mien_server.repository.versions import State
from mien_server.scheduling.interface import Work
from tests.unit.repository.folders import Open, add_version, configure, reason, states


def test_ready_version_answers_through_its_slot(root: Path, open_repository: Open) -> None:
    add_version(root, "retinaface", 1)
    add_version(root, "sface", 1)
    repository = open_repository()
    detector = repository.catalogue.resolve("retinaface", role=DETECTOR)
    embedder = repository.catalogue.resolve("sface", 1, role=EMBEDDER)
    assert (embedder.name, embedder.version) == ("sface", 1)
    assert embedder.config.options.match_threshold == 0.363
    image = np.zeros((64, 64, 3), np.uint8)
    done = detector.slot.submit(Work(rows=[DetectorRow(image, 0.5)], shape=64)).result(30)
    assert done.results[0].boxes.shape[1] == 4
    crop = np.zeros((112, 112, 3), np.uint8)
    done = embedder.slot.submit(Work(rows=[EmbedderRow(crop)])).result(30)
    assert done.results[0].shape == (128,)


def test_model_without_weights_says_which_command_installs_them(
    root: Path, open_repository: Open
) -> None:
    repository = open_repository(installable=("retinaface",))
    with pytest.raises(
        ModelNotReady, match="run `mien-server models install retinaface`"
    ) as caught:
        repository.catalogue.resolve("retinaface", role=DETECTOR)
    assert caught.value.lasting
    assert "docs/models.md" in reason(repository, "arcface")
    assert "mien-server models import arcface FILE" in reason(repository, "arcface")
    assert " and none are shipped (source: " in reason(repository, "arcface")


def test_broken_models_do_not_stop_the_others(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    with (add_version(root, "retinaface", 1) / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    configure(root, "arcface", "max_batch_size: 32", "max_batch_sise: 32")
    repository = open_repository()
    assert states(repository) == {
        ("arcface", 0): State.UNAVAILABLE,
        ("retinaface", 1): State.UNAVAILABLE,
        ("sface", 1): State.READY,
    }
    assert "config.pbtxt:8: " in reason(repository, "arcface")
    assert "does not match its manifest" in reason(repository, "retinaface", 1)
    mismatch = r"version 1: .*does not match its manifest"
    with pytest.raises(ModelNotReady, match=mismatch) as caught, at("detector"):
        repository.catalogue.resolve("retinaface", role=DETECTOR)
    assert caught.value.field == "detector"
    with pytest.raises(ModelNotReady, match=r"config\.pbtxt:8: "):
        repository.catalogue.resolve("arcface", role=EMBEDDER)


def test_weights_of_another_network_are_refused(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1, network="retinaface_mobilenet0.25")
    assert reason(open_repository(), "sface", 1)


def test_output_dims_that_the_network_does_not_have_are_refused(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    configure(root, "sface", "dims: [ 128 ]", "dims: [ 512 ]")
    assert "shape [128], but config.pbtxt says output.dims [512]" in reason(
        open_repository(), "sface", 1
    )


def test_version_zero_is_the_highest_ready_one(root: Path, open_repository: Open) -> None:
    configure(
        root, "retinaface", 'backend: "pytorch"', 'backend: "pytorch" version_policy { all { } }'
    )
    for version in (1, 2, 10):
        add_version(root, "retinaface", version, seed=version)
    (root / "retinaface" / "10" / "manifest.json").unlink()
    repository = open_repository()
    assert repository.catalogue.resolve("retinaface", role=DETECTOR).version == 2
    assert repository.catalogue.resolve("retinaface", 1, role=DETECTOR).version == 1
    one, two = (
        repository.catalogue.resolve("retinaface", v, role=DETECTOR).fingerprint for v in (1, 2)
    )
    assert one != two
    with pytest.raises(ModelNotReady, match=r"version 10: .*incomplete or still copied"):
        repository.catalogue.resolve("retinaface", 10, role=DETECTOR)


def test_default_policy_loads_the_latest_version_only(root: Path, open_repository: Open) -> None:
    add_version(root, "retinaface", 2)
    add_version(root, "retinaface", 10)
    repository = open_repository()
    assert ("retinaface", 2) not in states(repository)
    assert states(repository)["retinaface", 10] is State.READY


def test_specific_version_that_is_not_there_is_unavailable(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "retinaface", 1)
    policy = 'backend: "pytorch" version_policy { specific { versions: [ 1, 5 ] } }'
    configure(root, "retinaface", 'backend: "pytorch"', policy)
    repository = open_repository()
    assert states(repository)["retinaface", 1] is State.READY
    assert "it has no folder" in reason(repository, "retinaface", 5)


def test_folders_that_are_no_versions_are_ignored_with_a_warning(
    root: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(root, "retinaface", 1)
    for name in ("01", "0", "-1", "latest", ".2.installing"):
        (root / "retinaface" / name).mkdir()
    (root / "retinaface" / "3").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        repository = open_repository()
    assert [key for key in states(repository) if key[0] == "retinaface"] == [("retinaface", 1)]
    ignored = {
        Path(record.args[0]).name  # type: ignore[index, arg-type]
        for record in caplog.records
        if "is ignored" in record.msg
    }
    assert ignored == {"01", "0", "-1", "latest"}


def test_unknown_model_and_version_list_what_there_is(root: Path, open_repository: Open) -> None:
    add_version(root, "retinaface", 1)
    repository = open_repository()
    listed = "the models are: arcface, retinaface, sface"
    with pytest.raises(ModelNotFound, match=listed) as caught, at("detector.name"):
        repository.catalogue.resolve("yolo", role=DETECTOR)
    assert caught.value.field == "detector.name"
    with pytest.raises(ModelNotFound, match="no version 2; its versions: 1"):
        repository.catalogue.resolve("retinaface", 2, role=DETECTOR)
    with pytest.raises(ModelNotFound, match="no version -1"):
        repository.catalogue.resolve("retinaface", -1, role=DETECTOR)


def test_model_for_another_task_is_a_bad_option(root: Path, open_repository: Open) -> None:
    add_version(root, "retinaface", 1)
    repository = open_repository()
    needed = "an embedding model is needed: arcface, sface"
    with pytest.raises(InvalidRequest, match=needed) as e, at("embedder"):
        repository.catalogue.resolve("retinaface", role=EMBEDDER)
    assert (e.value.reason, e.value.field) == (Reason.INVALID_OPTION, "embedder")


def test_model_in_two_repositories_is_not_served(
    tmp_path: Path, root: Path, open_repository: Open
) -> None:
    add_version(root, "retinaface", 1)
    other = tmp_path / "other"
    shutil.copytree(root / "retinaface", other / "retinaface")
    repository = open_repository(root, other)
    assert f"in two repositories, {root / 'retinaface'} and" in reason(repository, "retinaface")


def test_absent_gpu_fails_the_start_before_anything_is_loaded(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "retinaface", 1)
    configure(root, "sface", "kind: KIND_AUTO", "kind: KIND_GPU gpus: [ 93 ]")
    with pytest.raises(DeviceError, match=r"model sface: .*cuda:93"):
        open_repository()


def test_field_without_effect_is_warned_of_once(
    root: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    configure(root, "sface", 'backend: "pytorch"', 'backend: "pytorch" optimization { }')
    with caplog.at_level(logging.WARNING):
        open_repository()
    said = [line for line in caplog.messages if "optimization has no effect" in line]
    assert len(said) == 1


def test_missing_repository_is_an_error(tmp_path: Path, open_repository: Open) -> None:
    with pytest.raises(RepositoryError, match="nowhere is not a folder"):
        open_repository(tmp_path / "nowhere")


def test_fingerprint_depends_on_the_configured_normalisation(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "retinaface", 1)
    before = open_repository().catalogue.resolve("retinaface", role=DETECTOR).fingerprint
    configure(root, "retinaface", '"BGR"', '"RGB"')
    assert open_repository().catalogue.resolve("retinaface", role=DETECTOR).fingerprint != before


def test_warm_up_runs_as_configured_before_the_version_is_ready(
    root: Path, open_repository: Open, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(root, "retinaface", 1)
    sample = """
model_warmup {
  name: "wide" batch_size: 3 count: 2
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 3, 128, 128 ] zero_data: true } }
}
input [
"""
    configure(root, "retinaface", "\ninput [\n", sample)
    with caplog.at_level(logging.INFO):
        open_repository()
    facts = ("retinaface", 1)
    said = [
        record.getMessage()
        for record in caplog.records
        if (getattr(record, "model", ""), getattr(record, "version", 0)) == facts
    ]
    assert [line.split(", took")[0] for line in said[:2]] == [
        "warm-up 'wide', 3 rows of 128 px"
    ] * 2
    assert "is ready after" in said[2]
