"""Brings a person's own weights into a model repository, as a new version of a model."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from mien_server.backends.devices import NO_PYTORCH, has_pytorch
from mien_server.errors import OperatorError
from mien_server.models.analyser import ANALYSER
from mien_server.models.crops import Crop, Window
from mien_server.models.families import find_family
from mien_server.models.roles import EMBEDDER
from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.folders import CONFIG, leads_out, version_numbers
from mien_server.repository.manifest import sha256_of
from mien_server.weights.errors import WeightsError
from mien_server.weights.progress import Progress
from mien_server.weights.recognise.checkpoint import as_analyser, recognise
from mien_server.weights.recognise.packs import files_of
from mien_server.weights.recognise.recognised import GivenInput, Recognised
from mien_server.weights.write.golden import add_golden
from mien_server.weights.write.templates import config_text, input_parameters, window_text
from mien_server.weights.write.version_folder import made, turn, write_tensors, write_version

AnyConfig: TypeAlias = ModelConfig | EnsembleConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_VERSION = 10**18 - 1


class ImportRefused(OperatorError):
    """Nothing was imported: what was asked for does not go together with the repository or the model."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A version that is now in the repository.

    Attributes:
        recognised: what its weights are.
    """

    model: str
    version: int
    folder: Path
    recognised: Recognised


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One file, and all that it can be imported as."""

    path: Path
    kinds: list[Recognised]


def import_weights(
    repository: Path,
    model: str | None,
    path: Path,
    progress: Progress | None = None,
    *,
    version: int | None = None,
    license_: str | None = None,
    source: str | None = None,
    given: GivenInput | None = None,
    part: str | None = None,
) -> list[Imported]:
    """Recognises a checkpoint, checks all of it, and writes it as a new version.

    A version that is there is never touched. The repository is made if it does not exist. Of a folder or a
    zip archive, everything that is recognised and fits is imported.

    Args:
        model: its folder in the repository. One that does not exist is made, with a config.pbtxt for the
            network; the networks of a folder or archive then become `<model>-<file>` each. None means the
            only model whose config.pbtxt asks for this network.
        path: a PyTorch, safetensors or ONNX file, a folder or a zip archive.
        version: the version's number, one more than the highest if None.
        license_: who may use the weights for what, for the manifest. None means what is known of such
            weights.
        source: where they come from. It goes into the manifest and decides what their content does not tell.
            None means the file's name.
        given: what the network's input is, where the person knows it.
        part: of FairFace's network, what the model shall tell: "age", "gender" or "race".

    Returns:
        The imported versions, at least one.

    Raises:
        ImportRefused: the repository, name or version cannot be used, or nothing fits the model.
        WeightsError: the file is not recognised, or is damaged.
        ConfigError: the model's config.pbtxt cannot be read.
    """
    progress = progress or Progress()
    if not (path.is_file() or path.is_dir()):
        raise ImportRefused(f"{path} is no file and no folder")
    window = given.window if given else None
    try:
        _check_names(repository, model, version)
        asked = _asked(repository, model)
        with files_of(path) as files:
            if window and files is not None:
                raise ImportRefused("a window is of one network: import its file by itself")
            found = (
                _read_pack(path, files, source or "", asked, part or "", progress)
                if files is not None
                else [_Checkpoint(path, _recognised(path, source or "", asked, window, part or ""))]
            )
            targets = _targets(repository, model, found, progress, pack=files is not None)
            return [
                _import(
                    repository,
                    name,
                    checkpoint,
                    kind
                    if given is None
                    else replace(
                        kind, normalisation=given.over(kind.normalisation), window=given.window
                    ),
                    progress,
                    said=given is not None,
                    version=version,
                    license_=license_ or kind.license,
                    source=source or path.name,
                )
                for name, checkpoint, kind in targets
            ]
    except OSError as error:
        raise ImportRefused(f"cannot import {path} into {repository}: {error}") from error


def _check_names(repository: Path, model: str | None, version: int | None) -> None:
    if repository.exists() and not repository.is_dir():
        raise ImportRefused(f"model repository {repository} is not a folder")
    if model is not None and not _NAME.fullmatch(model):
        raise ImportRefused(
            f"{model!r} is no name for a model: letters, digits, '-', '_' and '.' make its folder"
        )
    if model is not None and leads_out(repository / model, repository):
        raise ImportRefused(f"{repository / model} is a link that leads out of the repository")
    if version is not None and not 1 <= version <= _MAX_VERSION:
        raise ImportRefused(f"version {version} must be a whole number from 1 on")


def _asked(repository: Path, model: str | None) -> ModelConfig | None:
    """The configuration of the model, if it is there and no ensemble's."""
    if model is None or not (repository / model / CONFIG).is_file():
        return None
    config = read_config(repository / model / CONFIG)
    return config if isinstance(config, ModelConfig) else None


def _wanted_graph(asked: ModelConfig | None) -> str:
    """The architecture that a model on graphs asks for, or ""."""
    return asked.architecture if asked and asked.default_model_filename.endswith(".onnx") else ""


def _recognised(
    path: Path, source: str, asked: ModelConfig | None, window: Window | None, part: str
) -> list[Recognised]:
    if asked and asked.role is ANALYSER:
        return [as_analyser(path, asked.normalisation, part=part)]
    known = asked is not None and asked.role is EMBEDDER and not asked.options.crop.is_template
    cropped = known or window is not None
    return recognise(path, source, _wanted_graph(asked), cropped=cropped, part=part)


def _read_pack(
    path: Path,
    files: list[Path],
    source: str,
    asked: ModelConfig | None,
    part: str,
    progress: Progress,
) -> list[_Checkpoint]:
    found = []
    for file in files:
        try:
            kinds = recognise(file, source, _wanted_graph(asked), part=part)
            found.append(_Checkpoint(file, kinds))
        except WeightsError as error:
            progress.say(f"skipped: {error}")
    if not found:
        raise WeightsError(
            f"nothing in {path.name} is a checkpoint that mien can use"
            f" ({len(files)} files, each skipped for the reason above)"
        )
    return found


def _targets(
    repository: Path,
    model: str | None,
    found: list[_Checkpoint],
    progress: Progress,
    *,
    pack: bool,
) -> list[tuple[str, _Checkpoint, Recognised]]:
    """Decides which of the checkpoints goes into which model, and as what."""
    if model is None:
        model = _only_model(repository, found)
    config = repository / model / CONFIG
    if not config.is_file():
        if len(found) == 1:
            return [(model, found[0], found[0].kinds[0])]
        stems = [re.sub(r"[^A-Za-z0-9._-]", "_", each.path.stem) for each in found]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            raise ImportRefused(
                f"several files are called {', '.join(twice)}: import them one by one"
            )
        return [
            (f"{model}-{stem}", each, each.kinds[0])
            for stem, each in zip(stems, found, strict=True)
        ]
    wanted = read_config(config)
    fitting = [(each, kind) for each in found if (kind := _fitting(wanted, each.kinds))]
    for each in found:
        if all(each is not other for other, _ in fitting) and pack:
            progress.say(
                f"skipped: {each.path.name} is {each.kinds[0].kind}, not for {model}: import it under"
                " another name"
            )
    if not fitting:
        raise ImportRefused(_mismatch(config, wanted, found))
    if len(fitting) > 1:
        names = ", ".join(each.path.name for each, _ in fitting)
        raise ImportRefused(f"several files fit {model} ({names}): import one of them by itself")
    return [(model, *fitting[0])]


def _only_model(repository: Path, found: list[_Checkpoint]) -> str:
    names = []
    for config in sorted(repository.glob(f"*/{CONFIG}")):
        wanted = read_config(config)
        if any(_fitting(wanted, each.kinds) for each in found):
            names.append(config.parent.name)
    if len(names) != 1:
        there = f"{len(names)} models fit ({', '.join(names)})" if names else "no model fits"
        raise ImportRefused(
            f"{there} {found[0].kinds[0].kind} in {repository}: name the model that it shall be"
        )
    return names[0]


def _fitting(wanted: AnyConfig, kinds: list[Recognised]) -> Recognised | None:
    if not isinstance(wanted, ModelConfig):
        return None
    # OpenVINO runs either kind of file, and the name says which one the model wants.
    onnx = wanted.default_model_filename.endswith(".onnx")
    settings = (wanted.architecture, "onnxruntime" if onnx else "pytorch")
    return next((k for k in kinds if (k.architecture, k.backend) == settings), None)


def _mismatch(config: Path, wanted: AnyConfig, found: list[_Checkpoint]) -> str:
    kinds = " or ".join(kind.kind for each in found for kind in each.kinds)
    asks = "is an ensemble"
    hint = ""
    if isinstance(wanted, ModelConfig):
        asks = f"says architecture {wanted.architecture!r} on backend {wanted.backend!r}"
        if wanted.backend == "pytorch" and not has_pytorch():
            hint = f". A graph may hold that network's weights, but {NO_PYTORCH}"
    return (
        f"{', '.join(each.path.name for each in found)} is {kinds}, but {config} {asks}: import it under"
        f" another name, which makes a new model, or change that file{hint}"
    )


def _import(
    repository: Path,
    model: str,
    checkpoint: _Checkpoint,
    kind: Recognised,
    progress: Progress,
    *,
    said: bool,
    version: int | None,
    license_: str,
    source: str,
) -> Imported:
    digest = sha256_of(checkpoint.path)
    progress.say(
        f"{checkpoint.path.name}: {kind.title}, {kind.kind}, {kind.tensors} tensors,"
        f" {kind.parameters:,} parameters"
    )
    progress.say(f"sha256 {digest}")
    if kind.window and find_family(kind.architecture).role is not EMBEDDER:
        raise ImportRefused(f"{kind.title} is no embedder: only those see a window of the face")
    into = repository / model
    with made(into), turn(into, progress), _configured(into, kind, progress, license_, source):
        config = read_config(into / CONFIG)
        if not isinstance(config, ModelConfig) or not _fitting(config, [kind]):
            raise ImportRefused(_mismatch(into / CONFIG, config, [checkpoint]))
        for note in (*kind.notes, *_check_config(into / CONFIG, config, kind, said=said)):
            progress.say(f"note: {note}")
        progress.say(f"licence: {license_}")
        number = _free_version(into, version)

        def fill(staging: Path) -> None:
            _write(kind, staging / config.default_model_filename)
            add_golden(into, staging, progress)

        manifest = write_version(
            into / str(number),
            fill,
            source=f"{source}; {checkpoint.path.name} sha256 {digest}",
            license_=license_,
            command="models import",
        )
    size = sum(entry.size for entry in manifest.files.values())
    progress.say(f"{model} version {number} is imported ({size / 1e6:.1f} MB)")
    return Imported(model, number, into / str(number), kind)


@contextlib.contextmanager
def _configured(
    model: Path, kind: Recognised, progress: Progress, license_: str, source: str
) -> Iterator[None]:
    """Writes a model's config.pbtxt if there is none; takes it back if then nothing comes of it."""
    config = model / CONFIG
    if config.is_file():
        yield
        return
    role = find_family(kind.architecture).role
    if not role.template or (role is ANALYSER and not kind.told):
        raise ImportRefused(
            f"what a model of architecture {kind.architecture!r} takes and gives is not known: write {config}"
            " first (docs/models.md), and import it again"
        )
    if kind.normalisation is None:
        raise ImportRefused(
            f"how pixels become the input of architecture {kind.architecture!r} is not known: say so by"
            " --channel-order, --mean and --scale"
        )
    partial = model / f".{CONFIG}.partial"
    text = config_text(model.name, kind, license_=license_, source=source)
    partial.write_text(text, encoding="utf-8")
    partial.replace(config)
    progress.say(f"{config} is new: read it through")
    try:
        yield
    except BaseException:
        config.unlink()
        raise


def _free_version(folder: Path, version: int | None) -> int:
    numbers = version_numbers(folder)
    if version is None:
        return max(numbers, default=0) + 1
    if version in numbers:
        raise ImportRefused(
            f"{folder / str(version)} exists and is left as it is: choose another --version, or leave it"
            f" out for {max(numbers) + 1}"
        )
    return version


def _check_config(path: Path, config: ModelConfig, kind: Recognised, *, said: bool) -> list[str]:
    """Notes on where a config.pbtxt says something else than the network's publisher.

    Args:
        said: whether a person said what the input is.
    """
    if kind.dimensions and config.outputs[0].dims != (kind.dimensions,):
        raise ImportRefused(
            f"these weights give {kind.dimensions} dimensions, but {path} says output dims"
            f" {list(config.outputs[0].dims)}: change it, or import them under another name"
        )
    if config.role is EMBEDDER:
        _check_crop(path, config, kind)
    notes = []
    labels = kind.told.get("labels")
    if labels and (named := ", ".join(config.options.labels)) != labels:
        notes.append(f"{path} calls the answers {named}; these weights' publisher says {labels}")
    if kind.normalisation in (None, config.normalisation):
        return notes
    wanted = ", ".join(f'{k} "{v}"' for k, v in input_parameters(kind.normalisation).items())
    if said:
        raise ImportRefused(
            f"{path} prepares pixels in another way than you say, {wanted}: change it there, or import the"
            " weights under another name"
        )
    return [
        *notes,
        f"{path} prepares pixels in another way than these weights' publisher does, {wanted}: change it"
        " there, unless you know better",
    ]


def _check_crop(path: Path, config: ModelConfig, kind: Recognised) -> None:
    """Refuses an embedder that sees another part of a face than its config.pbtxt says, or at another size."""
    crop: Crop = config.options.crop
    if kind.side not in (0, crop.side):
        raise ImportRefused(
            f"this network sees {kind.side}x{kind.side} pixels, but {path} says input dims"
            f" {list(config.inputs[0].dims)}: change it, or import the network under another name"
        )
    if kind.window not in (None, crop.window):
        raise ImportRefused(
            f"{path} has the window {window_text(crop.window)}, not the one that you say: change it there, or"
            " import the network under another name"
        )


def _write(kind: Recognised, path: Path) -> None:
    if isinstance(kind.weights, Path):
        shutil.copyfile(kind.weights, path)
    elif isinstance(kind.weights, bytes):
        path.write_bytes(kind.weights)
    else:
        write_tensors(path, {key: tensor.numpy() for key, tensor in kind.weights.items()})
