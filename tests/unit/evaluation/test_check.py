"""A small version put to the test: found, run against its golden file, measured and reported."""

import errno
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mien_server.backends.devices import DeviceError
from mien_server.evaluation.check import Check, Speed, check_version, find_target
from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.reports import check_document, check_text
from mien_server.repository.golden import BOUNDS
from mien_server.repository.manifest import ManifestError, read_manifest
from mien_server.weights.errors import WeightsError
from mien_server.weights.progress import Progress
from mien_server.weights.write.golden import renew_golden

pytestmark = pytest.mark.usefixtures("quickly_measured")
CHECK = Check(
    model="colours",
    version=3,
    device="cpu",
    cores=2,
    precision="bf16",
    cosines=(0.9991, 0.9995, 1.0),
    bound=0.999,
    problem="",
    side=112,
    speeds=(Speed(1, 0.0123456), Speed(4, 0.8)),
    loaded_bytes=3000 << 20,
    running_bytes=1000 << 20,
)


def small_batches(repository: Path, rows: int) -> None:
    config = repository / "colours" / "config.pbtxt"
    text = config.read_text().replace("max_batch_size: 4", f"max_batch_size: {rows}")
    config.write_text(text)


def test_a_version_is_measured_by_batch_size(repository: Path) -> None:
    small_batches(repository, 2)
    target = find_target([repository], "colours", None)
    assert (target.version, target.folder) == (1, repository / "colours" / "1")
    assert not target.has_golden
    check = check_version(target, device="cpu", cores=1)
    assert (check.model, check.version, check.device, check.cores) == ("colours", 1, "cpu", 1)
    assert [speed.rows for speed in check.speeds] == [1, 2]
    assert all(speed.seconds > 0 for speed in check.speeds)
    assert (check.side, check.bound) == (112, BOUNDS["fp32"])
    assert (check.cosines, check.passed) == ((), True)
    assert check.problem.startswith("this version has no golden file: `mien-server models check")
    assert check.running_bytes >= 0


def test_the_speed_of_a_detector_is_that_on_its_smallest_canvas(repository: Path) -> None:
    config = repository / "bright" / "config.pbtxt"
    text = config.read_text().replace("max_batch_size: 4", "max_batch_size: 1")
    config.write_text(text.replace('string_value: "64"', 'string_value: "64, 128"'))
    target = find_target([repository], "bright", None)
    assert target.config.sides == (64, 128)
    assert check_version(target, device="cpu", cores=1).side == 64


def test_golden_files_are_used_if_they_are_for_these_pixels(repository: Path) -> None:
    small_batches(repository, 1)
    folder = repository / "colours" / "1"
    before = read_manifest(folder)
    renew_golden(repository, folder, "model.onnx", Progress(io.StringIO()))
    after = read_manifest(folder)
    assert (after.source, after.license) == (before.source, before.license)
    assert after.files["model.onnx"] == before.files["model.onnx"]
    assert after.files.keys() - before.files.keys() == {"golden.safetensors"}

    check = check_version(find_target([repository], "colours", 1), cores=1)
    assert check.cosines == pytest.approx([1] * len(check.cosines), abs=1e-5)
    assert len(check.cosines) > 1
    assert list(check.cosines) == sorted(check.cosines)
    assert (check.problem, check.passed) == ("", True)

    config = repository / "colours" / "config.pbtxt"
    config.write_text(config.read_text().replace('"RGB"', '"BGR"'))
    check = check_version(find_target([repository], "colours", 1), cores=1)
    assert check.cosines == ()
    assert "its golden file is for pixels prepared as RGB" in check.problem


def test_a_golden_file_that_cannot_be_written_leaves_the_version_as_it_was(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository / "colours" / "1"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(WeightsError, match=r"no golden file can be written: .*No space left"):
        renew_golden(repository, folder, "model.onnx", Progress(io.StringIO()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("nobody", None, "there is no model 'nobody', only bright, colours"),
        ("colours", 7, r"colours has no version 7, only \[1\]"),
        ("empty", None, "empty has no version: install or import its weights"),
        ("both", None, "both is an ensemble: check the models that it is made of"),
        ("away", None, "away"),
    ],
)
def test_what_cannot_be_checked_says_why(
    repository: Path, tmp_path: Path, name: str, version: int | None, problem: str
) -> None:
    if name == "empty":
        (repository / "empty").mkdir()
        text = (repository / "colours" / "config.pbtxt").read_text()
        (repository / "empty" / "config.pbtxt").write_text(text.replace('"colours"', '"empty"'))
    elif name == "both":
        shipped = Path(__file__).parents[3] / "model_repository" / "face_embedding"
        text = (shipped / "config.pbtxt").read_text().replace('"face_embedding"', '"both"')
        (repository / "both").mkdir()
        (repository / "both" / "config.pbtxt").write_text(text)
    elif name == "away":
        (repository / "away").symlink_to(tmp_path)
    with pytest.raises(EvaluationError, match=problem):
        find_target([repository], name, version)


def test_damaged_versions_and_absent_devices_are_refused(repository: Path) -> None:
    target = find_target([repository], "colours", None)
    for device, problem in (("tpu", "there is no device 'tpu'"), ("cuda:x", "no device 'cuda:x'")):
        with pytest.raises(DeviceError, match=problem):
            check_version(target, device=device)
    with pytest.raises(DeviceError, match="there is no cuda:9"):
        check_version(target, device="cuda:9")
    (target.folder / "model.onnx").write_bytes(b"half")
    with pytest.raises(ManifestError, match="has 4 bytes"):
        find_target([repository], "colours", None)


def test_repository_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nowhere"):
        find_target([tmp_path / "nowhere"], "colours", None)


def test_passing_is_having_no_cosine_below_the_bound() -> None:
    assert CHECK.passed
    assert replace(CHECK, cosines=(0.999,)).passed
    assert not replace(CHECK, cosines=(0.9989, 1.0)).passed


def test_report_for_machines() -> None:
    document = check_document(CHECK)
    assert document["cosine"] == {"min": 0.9991, "median": 0.9995, "bound": 0.999}
    assert document["speeds"] == [
        {"rows": 1, "milliseconds": 12.346, "rows_per_second": 81.0},
        {"rows": 4, "milliseconds": 800.0, "rows_per_second": 5.0},
    ]
    assert document["memory"] == {"loaded_bytes": 3000 << 20, "running_bytes": 1000 << 20}
    assert document["passed"] is True
    unknown = check_document(replace(CHECK, cosines=(), problem="none"))
    assert (unknown["passed"], unknown["cosine"], unknown["problem"]) == (None, None, "none")


def test_report_for_people() -> None:
    first, cosine, memory, blank, speed, head, one, four = check_text(CHECK).splitlines()
    assert first == "colours version 3, bf16 on cpu, 2 cores"
    assert cosine == "cosine to fp32   min 0.999100, median 0.999500 (bound 0.999): passed"
    assert memory == "memory           3000 MiB loaded, 1000 MiB more while it ran"
    assert (blank, speed) == (
        "",
        "speed with pictures of 112 pixels a side, from pixels to results",
    )
    assert [line.split() for line in (head, one, four)] == [
        ["rows", "ms", "rows/s"],
        ["1", "12.35", "81.0"],
        ["4", "800.00", "5.0"],
    ]
    assert ": FAILED" in check_text(replace(CHECK, cosines=(0.5,)))
    alone = check_text(replace(CHECK, device="cuda:0", cores=0, cosines=(), problem="none"))
    assert alone.startswith("colours version 3, bf16 on cuda:0\n")
    assert "cosine to fp32   not verified: none" in alone
    assert "cpu, 1 core\n" in check_text(replace(CHECK, cores=1))
