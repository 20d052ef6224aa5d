"""Which file of a hub's repository is meant, and what is said of it; the hubs' libraries are stood in for."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mien_server.weights.errors import FetchError
from mien_server.weights.fetch.hubs import HubFile, hugging_face, modelscope

LookUp = Callable[[str, str], HubFile]


class Hub:
    """What both libraries are asked for, of the one repository `owner/name`.

    Attributes:
        files: their paths.
        license: what the hub says of it.
        asked: the arguments of each download.
    """

    def __init__(self, folder: Path) -> None:
        self.files = ["README.md", "backbone.pth"]
        self.license: dict[str, str | None] = {}
        self.asked: list[tuple[str, ...]] = []
        self._folder = folder

    def names_of(self, repository: str) -> list[str]:
        if repository != "owner/name":
            raise RuntimeError("401 no such repository")
        return self.files

    def download(self, *what: str) -> str:
        self.asked.append(what)
        path = self._folder / what[-1] if (self._folder / what[-1]).exists() else None
        if path is None:
            raise RuntimeError("the connection broke")
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    (tmp_path / "backbone.pth").write_bytes(b"weights")

    def model_info(repository: str) -> Any:
        names = hub.names_of(repository)
        siblings = [SimpleNamespace(rfilename=name) for name in names] or None
        return SimpleNamespace(siblings=siblings, card_data=hub.license or None, sha="c0ffee")

    def list_files(repository: str, kind: str) -> Any:
        assert kind == "model"
        files = [SimpleNamespace(path=name, is_dir=False) for name in hub.names_of(repository)]
        return [*files, SimpleNamespace(path="folder.pth", is_dir=True)]

    of_hugging_face = SimpleNamespace(
        HfApi=lambda: SimpleNamespace(model_info=model_info),
        hf_hub_download=lambda repository, name, revision: hub.download(repository, revision, name),
    )
    of_modelscope = SimpleNamespace(
        HubApi=lambda: SimpleNamespace(
            get_repo=lambda repository, kind: SimpleNamespace(license=hub.license.get("license")),
            list_repo_files=list_files,
            download_file=lambda repository, kind, name: hub.download(repository, kind, name),
        )
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", of_hugging_face)
    monkeypatch.setitem(sys.modules, "modelscope_hub", of_modelscope)
    return hub


BOTH = pytest.mark.parametrize(
    ("look_up", "scheme"), [(hugging_face, "hf"), (modelscope, "modelscope")]
)


@BOTH
def test_the_only_checkpoint_is_meant(hub: Hub, look_up: LookUp, scheme: str) -> None:
    file = look_up("owner/name", "")
    assert file.origin.startswith(f"{scheme}:owner/name/backbone.pth")
    assert file.license == "not stated by the hub"
    assert hub.asked == [], "the licence comes before the download"
    assert file.fetch().read_bytes() == b"weights"
    assert hub.asked == [("owner/name", {"hf": "c0ffee"}.get(scheme, "model"), "backbone.pth")]


def test_hugging_face_names_the_commit_and_all_that_it_says_of_the_licence(hub: Hub) -> None:
    hub.license = {"license": "other", "license_name": "research", "license_link": "https://l"}
    file = hugging_face("owner/name", "")
    assert file.origin == "hf:owner/name/backbone.pth at c0ffee"
    assert file.license == "other research https://l"
    hub.license = {"license": "mit", "license_link": None}
    assert hugging_face("owner/name", "").license == "mit"


def test_modelscope_says_its_licence(hub: Hub) -> None:
    hub.license = {"license": "Apache License 2.0"}
    file = modelscope("owner/name", "")
    assert (file.origin, file.license) == (
        "modelscope:owner/name/backbone.pth",
        "Apache License 2.0",
    )


@BOTH
def test_a_file_may_be_named_and_must_be_there(hub: Hub, look_up: LookUp, scheme: str) -> None:
    hub.files = ["a/one.onnx", "two.onnx"]
    assert f"{scheme}:owner/name/a/one.onnx" in look_up("owner/name", "a/one.onnx").origin
    with pytest.raises(
        FetchError, match=r"has no file 'one\.onnx'; it has: a/one\.onnx, two\.onnx"
    ):
        look_up("owner/name", "one.onnx")


@BOTH
def test_several_or_none_must_be_chosen_from(hub: Hub, look_up: LookUp, scheme: str) -> None:
    hub.files = ["b.zip", "a.safetensors", "README.md"]
    with pytest.raises(
        FetchError,
        match=rf"^{scheme}:owner/name has several checkpoints \(a\.safetensors, b\.zip\): name one",
    ):
        look_up("owner/name", "")
    hub.files = []
    with pytest.raises(FetchError, match="has no file that is a checkpoint: name one"):
        look_up("owner/name", "")


@BOTH
def test_what_the_library_says_is_passed_on(hub: Hub, look_up: LookUp, scheme: str) -> None:
    with pytest.raises(FetchError, match=f"{scheme}:no/body could not be looked up: 401 no such"):
        look_up("no/body", "")
    hub.files = ["other.pth"]
    file = look_up("owner/name", "")
    with pytest.raises(FetchError, match=r"other\.pth.* could not be had: the connection broke"):
        file.fetch()
