"""Model hubs through their own client libraries, the extra `mien[hubs]`."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from mien_server.weights.errors import FetchError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".onnx", ".bin", ".ckpt", ".zip")
_UNSTATED = "not stated by the hub"


class HubFile:
    """One file of a repository on a hub.

    Attributes:
        origin: hub, repository, file and commit, as people and the manifest are told.
        license: what the hub says of the repository.
    """

    def __init__(self, origin: str, license_: str, fetch: Callable[[], str | Path]) -> None:
        self.origin = origin
        self.license = license_
        self._fetch = fetch

    def fetch(self) -> Path:
        """Downloads it into the library's own cache, unless it is there.

        Raises:
            FetchError: it could not be had.
        """
        try:
            return Path(self._fetch())
        except Exception as error:  # each library has its own tree of errors
            raise FetchError(f"{self.origin} could not be had: {error}") from error


def hugging_face(repository: str, file: str) -> HubFile:
    """Looks up a file of a model on the Hugging Face hub, in its newest commit.

    The library's own HF_ENDPOINT and HF_TOKEN apply.

    Args:
        repository: owner/name.
        file: its path there, or "" for the only checkpoint that the repository has.

    Raises:
        FetchError: the library is missing, or the hub did not answer, or has no such checkpoint.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise _missing("huggingface_hub") from error
    try:
        info = HfApi().model_info(repository)
    except Exception as error:
        raise FetchError(f"hf:{repository} could not be looked up: {error}") from error
    name = _choose(f"hf:{repository}", file, [each.rfilename for each in info.siblings or ()])
    card = info.card_data or {}
    facts = (card.get(key) for key in ("license", "license_name", "license_link"))
    license_ = " ".join(str(fact) for fact in facts if fact) or _UNSTATED
    return HubFile(
        f"hf:{repository}/{name} at {info.sha}",
        license_,
        lambda: hf_hub_download(repository, name, revision=info.sha),
    )


def modelscope(repository: str, file: str) -> HubFile:
    """Looks up a file of a model on the ModelScope hub. The library's own MODELSCOPE_ENDPOINT applies.

    Args:
        repository: owner/name.
        file: its path there, or "" for the only checkpoint that the repository has.

    Raises:
        FetchError: the library is missing, or the hub did not answer, or has no such checkpoint.
    """
    try:
        from modelscope_hub import HubApi
    except ImportError as error:
        raise _missing("modelscope_hub") from error
    try:
        hub = HubApi()
        license_ = hub.get_repo(repository, "model").license or _UNSTATED
        files = [each.path for each in hub.list_repo_files(repository, "model") if not each.is_dir]
    except Exception as error:
        raise FetchError(f"modelscope:{repository} could not be looked up: {error}") from error
    name = _choose(f"modelscope:{repository}", file, files)
    return HubFile(
        f"modelscope:{repository}/{name}",
        license_,
        lambda: hub.download_file(repository, "model", name),
    )


def _missing(library: str) -> FetchError:
    return FetchError(
        f"this needs the library {library}: pip install 'mien[hubs]'; or download the file in another way and"
        " run `mien-server models import`"
    )


def _choose(repository: str, file: str, files: Sequence[str]) -> str:
    """The file that is meant among those that a repository has."""
    if file:
        if file in files:
            return file
        raise FetchError(f"{repository} has no file {file!r}; it has: {', '.join(sorted(files))}")
    found = sorted(each for each in files if PurePosixPath(each).suffix in _SUFFIXES)
    if len(found) == 1:
        return found[0]
    there = f"several checkpoints ({', '.join(found)})" if found else "no file that is a checkpoint"
    raise FetchError(f"{repository} has {there}: name one, {repository}/FILE")
