"""`thresholds.json` of a version folder: what was measured of these weights, and on what.

The manifest does not list it: it may be written, replaced and removed while the version serves, which then
need not be loaded again. Instead it names the fingerprint that it was measured with, and counts for no other.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mien_server.models.roles import EMBEDDER, EmbedderOptions
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.folders import THRESHOLDS, is_regular, leads_out
from mien_server.repository.manifest import ManifestError

_MAX_BYTES = 1 << 16
_log = logging.getLogger(__name__)

_Cosine = Annotated[float, Field(ge=-1, le=1)]


class Thresholds(BaseModel):
    """From which cosine on a version says "the same person", as it was measured.

    Attributes:
        schema_version: of this format.
        match_threshold: in [-1, 1].
        thresholds_by_far: pairs of a false accept rate in (0, 1) and the cosine that keeps it.
        rule: how `match_threshold` was chosen: "FAR 0.001".
        data: the labelled pairs' name.
        genuine, impostor: how many pairs of one and of two people were compared.
        version, fingerprint: of the model, when they were.
        created: when that was, with its time zone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    match_threshold: _Cosine
    thresholds_by_far: tuple[tuple[Annotated[float, Field(gt=0, lt=1)], _Cosine], ...] = ()
    rule: str
    data: str
    genuine: Annotated[int, Field(ge=1)]
    impostor: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    fingerprint: str
    created: AwareDatetime

    @property
    def provenance(self) -> str:
        """Where they come from, in one line."""
        return (
            f"calibrated on {self.created:%Y-%m-%d} with version {self.version} on {self.genuine:,} +"
            f" {self.impostor:,} pairs of {self.data}: {self.rule}"
        )

    def parameters(self) -> dict[str, str]:
        """As parameters of a config.pbtxt, for Triton's clients."""
        table = ", ".join(f"{far:g}: {cosine:g}" for far, cosine in self.thresholds_by_far)
        return {
            "match_threshold": f"{self.match_threshold:g}",
            "thresholds_by_far": table,
            "thresholds_source": self.provenance,
        }


def write_thresholds(folder: Path, thresholds: Thresholds) -> None:
    """Puts them into a version folder, at once: whoever reads meanwhile finds the old ones or the new.

    Raises:
        OSError: they cannot be written; the old ones are still there.
    """
    partial = folder / f".{THRESHOLDS}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(thresholds.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / THRESHOLDS)


def read_thresholds(folder: Path, root: Path, fingerprint: str) -> Thresholds | None:
    """Those of a version, or None if it has none; also, with a warning, if they are of other weights.

    Args:
        folder: the version folder.
        root: the repository, out of which no link may lead.
        fingerprint: of the version, as it is configured now.

    Raises:
        ManifestError: the file cannot be used.
    """
    path = folder / THRESHOLDS
    try:
        if not path.exists():
            return None
        if leads_out(path, root) or not is_regular(path) or path.stat().st_size > _MAX_BYTES:
            raise ManifestError(f"{path} is no small file of the repository: remove it")
        found = Thresholds.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ManifestError(
            f"{path}: {field + ': ' if field else ''}{first['msg']}: mend or remove it, or have"
            " `mien-server evaluate verification --calibrate` write it anew"
        ) from error
    if found.fingerprint != fingerprint:
        _log.warning(
            "%s was measured with fingerprint %s, the version now has %s: it is not used, calibrate again",
            *(path, found.fingerprint, fingerprint),
            extra={"model": folder.parent.name, "version": int(folder.name)},
        )
        return None
    return found


def judged_by(config: ModelConfig, thresholds: Thresholds | None) -> ModelConfig:
    """The configuration of a version: its model's, with its own thresholds where it has some."""
    if thresholds is None or config.role is not EMBEDDER:
        return config
    options: EmbedderOptions = replace(
        config.options,
        match_threshold=thresholds.match_threshold,
        thresholds_by_far=thresholds.thresholds_by_far,
    )
    return replace(config, options=options)


def told_with(message: Any, thresholds: Thresholds | None) -> Any:
    """Triton's `inference.ModelConfig` of a version: its model's, with its own thresholds."""
    if thresholds is None or message is None:
        return message
    told = type(message)()
    told.CopyFrom(message)
    for key, value in thresholds.parameters().items():
        told.parameters[key].string_value = value
    return told
