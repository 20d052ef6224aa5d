"""Which model folders the repositories have."""

import logging
from pathlib import Path

import pytest

from mien_server.repository.folders import find_models, stamp_of_model


def test_same_repository_given_twice_is_one(tmp_path: Path) -> None:
    root, link = tmp_path / "repository", tmp_path / "link"
    (root / "sface").mkdir(parents=True)
    link.symlink_to(root)
    models = find_models([root, root / ".." / "repository", link])
    assert [(name, model.problem) for name, model in models.items()] == [("sface", "")]


def test_folder_whose_name_is_no_text_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad\nname").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_models([tmp_path]) == find_models([tmp_path]) == {}
    (warning,) = caplog.messages
    assert warning == f"{tmp_path}: the folder 'bad\\nname' is ignored: its name is not text"


def test_a_models_stamp_changes_with_its_files_and_versions_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mask"
    folder.mkdir()
    model = find_models([tmp_path])["mask"]
    stamps = [stamp_of_model(model)]

    def changed() -> bool:
        stamps.append(stamp_of_model(model))
        return stamps[-1] != stamps[-2]

    assert not changed()
    for name in ("config.pbtxt", "labels.txt"):
        (folder / name).write_text("one")
        assert changed()
    (folder / "labels.txt").write_text("another")
    assert changed()
    (folder / "1").mkdir()
    assert changed()
    (folder / "1" / "model.onnx").touch()
    assert changed()
    (folder / ".install.lock").touch()
    (folder / "notes").mkdir()
    (folder / "notes" / "text").touch()
    assert not changed()


def test_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    root, outside = tmp_path / "repository", tmp_path / "outside"
    for name in ("good", "looping", "linked"):
        (root / name).mkdir(parents=True)
    (root / "good" / "config.pbtxt").touch()
    outside.touch()
    loop = root / "looping" / "config.pbtxt"
    loop.symlink_to(loop)
    (root / "linked" / "config.pbtxt").symlink_to(outside)
    (root / "elsewhere").symlink_to(tmp_path)
    (root / ".hidden").mkdir()
    (root / "file").touch()
    problems = {name: model.problem for name, model in find_models([root]).items()}
    assert problems == {
        "elsewhere": f"{root / 'elsewhere'} leads out of the repository {root}: it must not be a link",
        "good": "",
        "linked": f"{root / 'linked' / 'config.pbtxt'} leads out of the repository {root}:"
        " it must not be a link",
        "looping": f"{loop} cannot be followed: Symlink loop from {str(loop)!r}",
    }
