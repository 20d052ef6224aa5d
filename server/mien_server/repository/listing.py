"""What model repositories hold, told from their folders alone: no server, and nothing loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mien_server.errors import OperatorError
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.folders import CONFIG, ModelFolder, find_models, version_numbers
from mien_server.repository.manifest import verify_version, version_fingerprint
from mien_server.repository.thresholds import judged_by, read_thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One version, or one model without any.

    Attributes:
        model: its name.
        version: 1 or more; 0: the model itself, of which no version can be told.
        state: "whole", "not asked for" (whole, but version_policy leaves it out), "unusable", "no weights" or
            "ensemble".
        reason: why it is unusable, and what to do.
        architecture, fingerprint: of the version, as it is configured now.
        bytes: of its files together.
        match_threshold: by which Verify judges it, if there is one.
        license, source, created: what its manifest says.
    """

    model: str
    version: int = 0
    state: str
    reason: str = ""
    architecture: str = ""
    fingerprint: str = ""
    bytes: int = 0
    match_threshold: float | None = None
    license: str = ""
    source: str = ""
    created: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def list_repository(repositories: Sequence[Path]) -> list[Listed]:
    """Every model and version, by name and number. Blocking: reads all of their files.

    Raises:
        OperatorError: a repository cannot be listed.
    """
    try:
        models = find_models([path.resolve() for path in repositories])
    except OSError as error:
        raise OperatorError(f"a model repository cannot be listed: {error}") from error
    found = [each for name, folder in models.items() for each in _versions(name, folder)]
    return sorted(found, key=lambda each: (each.model, each.version))


def listing_text(found: Sequence[Listed]) -> str:
    """Models and versions as a table."""
    rows = [
        ["model", "version", "state", "architecture", "fingerprint", "MB", "threshold", "licence"]
    ]
    for each in found:
        sure = each.state in ("whole", "not asked for")
        judged = "-" if each.match_threshold is None else f"{each.match_threshold:g}"
        size, licence = f"{each.bytes / 1e6:.1f}", each.license
        rows.append(
            [
                *(each.model, str(each.version or "-"), each.state, each.architecture or "-"),
                *((each.fingerprint, size, judged, licence) if sure else ("-", "-", "-", "-")),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{each.model} {each.version or ''}: {each.reason}" for each in found if each.reason]
    return "\n".join(lines)


def _versions(name: str, folder: ModelFolder) -> Iterator[Listed]:
    if folder.problem:
        yield Listed(model=name, state="unusable", reason=folder.problem)
        return
    try:
        config = read_config(folder.path / CONFIG)
        numbers = sorted(version_numbers(folder.path))
    except (OperatorError, OSError) as error:
        yield Listed(model=name, state="unusable", reason=str(error))
        return
    if not isinstance(config, ModelConfig):
        yield Listed(model=name, state="ensemble")
        return
    if not numbers:
        yield Listed(model=name, state="no weights", architecture=config.architecture)
    sound = []
    for number in numbers:
        try:
            sound.append(_whole(config, number, folder))
        except OperatorError as error:
            yield Listed(
                model=name,
                version=number,
                state="unusable",
                reason=str(error),
                architecture=config.architecture,
            )
    wanted = config.wanted_versions(each.version for each in sound)
    for each in sound:
        yield each if each.version in wanted else replace(each, state="not asked for")


def _whole(config: ModelConfig, number: int, folder: ModelFolder) -> Listed:
    path = folder.path / str(number)
    manifest = verify_version(path, folder.root, config.default_model_filename)
    made_by = version_fingerprint(config, manifest)
    options = judged_by(config, read_thresholds(path, folder.root, made_by)).options
    return Listed(
        model=config.name,
        version=number,
        state="whole",
        architecture=config.architecture,
        fingerprint=made_by,
        bytes=sum(file.size for file in manifest.files.values()),
        match_threshold=getattr(options, "match_threshold", None),
        license=manifest.license,
        source=manifest.source,
        created=manifest.created.isoformat(),
    )
