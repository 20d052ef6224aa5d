"""manifest.json: a version counts only if it is whole, and nothing leads out of the repository."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mien_server.models.interface import Normalisation
from mien_server.repository import manifest as manifests
from mien_server.repository.manifest import (
    ManifestError,
    describe,
    fingerprint,
    read_manifest,
    verify_version,
    write_manifest,
)
from mien_server.scheduling.errors import Draining

WEIGHTS = "model.safetensors"
CREATED = datetime(2025, 3, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    (path / "model").mkdir(parents=True)
    return path


@pytest.fixture
def version(root: Path) -> Path:
    """A whole version folder."""
    folder = root / "model" / "1"
    folder.mkdir()
    save_file({"x": torch.arange(12.0)}, folder / WEIGHTS)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Writes the manifest of what is in the folder now."""
    facts: dict[str, Any] = {"source": "a test", "license_": "MIT", "importer": "pytest 1"}
    write_manifest(folder, describe(folder, created=CREATED, **facts))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_was_written_is_read_back(root: Path, version: Path) -> None:
    manifest = read_manifest(version)
    assert manifest == verify_version(version, root, WEIGHTS)
    assert list(manifest.files) == [WEIGHTS]
    assert manifest.files[WEIGHTS].size == (version / WEIGHTS).stat().st_size
    assert (manifest.source, manifest.license, manifest.importer) == ("a test", "MIT", "pytest 1")
    assert manifest.created == CREATED
    assert manifest.created.utcoffset() is not None


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert manifests.sha256_of(path) == known


def _flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def _truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def _folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def _set(*keys: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        def change(content: dict[str, Any]) -> None:
            for key in keys[:-1]:
                content = content[key]
            content[keys[-1]] = value

        edit(folder, change)

    return damage


def _pipe(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def _list_also(name: str) -> Callable[[Path], None]:
    return _set("files", name, value={"sha256": "0" * 64, "size": 0})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flip, "does not match its manifest: sha256"),
    "a byte short": (_truncate, "bytes, its manifest says"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "is missing"),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "incomplete or still copied"),
    "manifest empty": (lambda f: (f / "manifest.json").write_text(""), "Invalid JSON"),
    "manifest truncated": (lambda f: os.truncate(f / "manifest.json", 40), "Invalid JSON"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "an object"),
    "manifest a folder": (_folder, "is no file"),
    "manifest a pipe": (_pipe("manifest.json"), "is no file"),
    "weights a pipe": (_pipe(WEIGHTS), "is missing or no file"),
    "an absurd size": (_set("files", WEIGHTS, "size", value=1 << 60), "more than the"),
    "manifest too large": (
        lambda f: (f / "manifest.json").write_bytes(b" " * (1 << 20) + b"{}"),
        "1 MiB",
    ),
    "another schema": (_set("schema_version", value=2), "schema_version"),
    "an unknown field": (_set("run", value="rm -rf"), "run"),
    "no file listed": (_set("files", value={}), "files"),
    "weights not listed": (
        _set("files", value={"other": {"sha256": "0" * 64, "size": 0}}),
        "does not list model.safetensors",
    ),
    "wrong hash": (_set("files", WEIGHTS, "sha256", value="0" * 64), "expected 000"),
    "hash no hash": (_set("files", WEIGHTS, "sha256", value="abc"), "sha256"),
    "hash in capitals": (_set("files", WEIGHTS, "sha256", value="A" * 64), "sha256"),
    "size negative": (_set("files", WEIGHTS, "size", value=-1), "size"),
    "size a string": (_set("files", WEIGHTS, "size", value="160"), "size"),
    "time without zone": (_set("created", value="2025-03-01T12:30:00"), "created"),
    "a file that is not there": (_list_also("labels.txt"), "labels.txt is missing"),
    "a path up": (_list_also("../2/model.safetensors"), "no file name in the version folder"),
    "an absolute path": (_list_also("/etc/hostname"), "no file name in the version folder"),
    "a Windows path": (_list_also("..\\x"), "no file name in the version folder"),
    "a folder in the folder": (_list_also("a/b"), "no file name in the version folder"),
    "a name that is no text": (
        _list_also("a\0b"),
        r"'a\\x00b' is no file name in the version folder",
    ),
    "itself": (_list_also("manifest.json"), "no file name in the version folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_version_is_refused_and_says_why(root: Path, version: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    damage(version)
    with pytest.raises(ManifestError, match=reason) as caught:
        verify_version(version, root, WEIGHTS)
    assert str(version) in str(caught.value), "the message names the place"


def test_a_file_cut_short_while_it_is_checked_is_refused(root: Path, version: Path) -> None:
    (version / WEIGHTS).write_bytes(bytes(3 << 20))
    seal(version)
    with pytest.raises(ManifestError, match="does not match its manifest"):
        verify_version(version, root, WEIGHTS, lambda: os.truncate(version / WEIGHTS, 0))


def test_checking_a_large_file_can_be_ended_within_it(root: Path, version: Path) -> None:
    (version / WEIGHTS).write_bytes(bytes(3 << 20))
    seal(version)
    calls = iter((None, Draining("enough")))

    def stop_if_asked() -> None:
        if error := next(calls):
            raise error

    with pytest.raises(Draining, match="enough"):
        verify_version(version, root, WEIGHTS, stop_if_asked)


def test_link_within_the_repository_is_followed(root: Path, version: Path) -> None:
    (root / "model" / "2").symlink_to(version)
    verify_version(root / "model" / "2", root, WEIGHTS)


@pytest.mark.parametrize("linked", ["folder", WEIGHTS, "manifest.json"])
def test_link_out_of_the_repository_is_refused(
    tmp_path: Path, root: Path, version: Path, linked: str
) -> None:
    outside = tmp_path / "outside"
    if linked == "folder":
        version.rename(outside)
        version.symlink_to(outside)
    else:
        (version / linked).rename(outside)
        (version / linked).symlink_to(outside)
    with pytest.raises(ManifestError, match="leads out of the repository"):
        verify_version(version, root, WEIGHTS)


@pytest.mark.parametrize("linked", [WEIGHTS, "manifest.json"])
def test_loop_of_links_is_refused(root: Path, version: Path, linked: str) -> None:
    path = version / linked
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(
        ManifestError, match=f"^{path} cannot be (followed|read): .*[Ss]ymlink loop"
    ):
        verify_version(version, root, WEIGHTS)


def test_manifest_of_one_mebibyte_is_read(root: Path, version: Path) -> None:
    path = version / "manifest.json"
    path.write_text(path.read_text().ljust(1 << 20))
    verify_version(version, root, WEIGHTS)
    path.write_text(path.read_text() + " ")
    with pytest.raises(ManifestError) as caught:
        verify_version(version, root, WEIGHTS)
    assert str(caught.value) == f"{path} is larger than 1 MiB"


def test_file_is_read_up_to_eight_gibibytes(root: Path, version: Path) -> None:
    most = 8 << 30
    _set("files", WEIGHTS, "size", value=most)(version)
    with pytest.raises(ManifestError, match=f"bytes, its manifest says {most}$"):
        verify_version(version, root, WEIGHTS)
    _set("files", WEIGHTS, "size", value=most + 1)(version)
    with pytest.raises(ManifestError, match=f"has {most + 1} bytes, more than the {most} that"):
        verify_version(version, root, WEIGHTS)


def test_repository_may_itself_be_reached_through_a_link(
    tmp_path: Path, root: Path, version: Path
) -> None:
    (tmp_path / "link").symlink_to(root)
    verify_version(tmp_path / "link" / "model" / "1", tmp_path / "link", WEIGHTS)


NORMALISATION = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)


def test_fingerprint_is_stable() -> None:
    # Callers store fingerprints beside their embeddings: this value changes with ALIGNMENT, and never else.
    value = fingerprint("ab" * 32, "sface", NORMALISATION)
    assert value == "40fcb31d781d97d7"


@pytest.mark.parametrize(
    "other",
    [
        ("ac" * 32, "sface", NORMALISATION),
        ("ab" * 32, "iresnet50", NORMALISATION),
        ("ab" * 32, "sface", Normalisation("BGR", NORMALISATION.mean, NORMALISATION.scale)),
        ("ab" * 32, "sface", Normalisation("RGB", (127.5, 127.5, 127), NORMALISATION.scale)),
        ("ab" * 32, "sface", Normalisation("RGB", NORMALISATION.mean, 1 / 127.5)),
        ("ab" * 32, "sface", Normalisation("RGB", NORMALISATION.mean, (1 / 128, 1 / 128, 1 / 127))),
    ],
)
def test_fingerprint_covers_weights_network_and_normalisation(
    other: tuple[str, str, Normalisation],
) -> None:
    assert fingerprint(*other) != fingerprint("ab" * 32, "sface", NORMALISATION)


def test_fingerprint_covers_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("ab" * 32, "sface", NORMALISATION)
    monkeypatch.setattr(manifests, "ALIGNMENT", "another")
    assert fingerprint("ab" * 32, "sface", NORMALISATION) != before
