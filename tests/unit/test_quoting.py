from pathlib import Path

from mien_server.quoting import without_folders


def test_paths_in_a_folder_become_relative_to_it_by_whichever_name_they_go(tmp_path: Path) -> None:
    real, link = tmp_path / "releases" / "7", tmp_path / "current"
    real.mkdir(parents=True)
    link.symlink_to(real)
    text = f"{link}/a/config.pbtxt:3 and {real}/b/1 leads out of the repository {real}"
    hidden = without_folders(text, [link])
    assert hidden == "a/config.pbtxt:3 and b/1 leads out of the repository the repository"
    assert without_folders("and/or", [link, Path("/")]) == "and/or"
    assert without_folders(f"{tmp_path}/other", [link]) == f"{tmp_path}/other"


def test_folder_within_another_is_taken_first(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    assert without_folders(f"{inner}/a", [tmp_path, inner]) == "a"
