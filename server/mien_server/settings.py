"""Everything an operator can set: flags, MIEN_* variables and a TOML file, read once at the edge.

One flat list of settings is the source of the flags of `mien-server serve`, of the variables, of
the file's keys, and of docs/configuration.md, which `python -m mien_server.settings` prints.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, IPvAnyAddress, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mien_server.errors import OperatorError

ENV_PREFIX = "MIEN_"
GROUPS = ("Listening", "Models", "Galleries", "Limits", "Devices", "Logging", "Shutdown")
MIB = 1024 * 1024


class SettingsError(OperatorError):
    """A setting that cannot hold; the message names its flag, its variable and the fix."""


def _setting(default: Any, group: str, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


class Settings(BaseSettings):
    """The server's settings. A flag beats a variable, a variable the file, the file the default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    config: Path | None = _setting(
        None, "Listening", "A TOML file of settings: `grpc_port = 8001`, one key per setting."
    )
    grpc_address: IPvAnyAddress = _setting(
        ipaddress.IPv4Address("127.0.0.1"),
        "Listening",
        "The IP address to listen on. 0.0.0.0 or ::: every interface. There is no authentication, so"
        " do that only inside a trusted network.",
    )
    grpc_port: int = _setting(
        8001,
        "Listening",
        "The TCP port of the gRPC endpoint. 0: any free one; the ready line of the log names it.",
        ge=0,
        le=65535,
    )
    reflection: bool = _setting(
        True, "Listening", "Whether gRPC server reflection is served, for tools such as grpcurl."
    )
    allow_metrics: bool = _setting(
        True, "Listening", "Whether metrics for Prometheus are served, over HTTP at /metrics."
    )
    metrics_address: IPvAnyAddress | None = _setting(
        None, "Listening", "The IP address of the metrics. none: that of `--grpc-address`."
    )
    metrics_port: int = _setting(
        8002,
        "Listening",
        "The TCP port of the metrics. 0: any free one; the log names it.",
        ge=0,
        le=65535,
    )
    default_deadline_secs: float = _setting(
        60.0,
        "Listening",
        "Seconds that a call without a deadline of its own may take.",
        gt=0,
        le=3600,
    )

    model_repository: Annotated[tuple[Path, ...], NoDecode] = _setting(
        (Path("model_repository"),),
        "Models",
        "A folder of models in Triton's layout. Repeat the flag for several; in the variable,"
        f" separate them by `{os.pathsep}`.",
        min_length=1,
    )
    default_detector: str = _setting(
        "retinaface", "Models", "The detector of calls that name none.", min_length=1
    )
    default_embedder: str = _setting(
        "sface", "Models", "The embedding model of calls that name none.", min_length=1
    )
    model_control_mode: Literal["none", "poll", "explicit"] = _setting(
        "none",
        "Models",
        "none: all models are loaded at the start. poll: and followed as their folders change."
        " explicit: those that `--load-model` names, and then on request.",
    )
    load_model: Annotated[tuple[str, ...], NoDecode] = _setting(
        (),
        "Models",
        "A model to load at the start under `--model-control-mode explicit`; `*`: all. Repeat the flag"
        " for several; in the variable, separate them by commas.",
    )
    repository_poll_secs: float = _setting(
        15.0,
        "Models",
        "Seconds between two looks at the repository under `--model-control-mode poll`.",
        gt=0,
        le=86400,
    )
    strict_readiness: bool = _setting(
        True,
        "Models",
        "Whether the server is ready only while every model that it has tried to load serves. false:"
        " the default detector and embedder are enough, or under `--model-control-mode explicit` none.",
    )

    gallery_dir: Path | None = _setting(
        None,
        "Galleries",
        "The folder that keeps the galleries; it is made if it does not exist. none: the server has no"
        " galleries.",
    )
    gallery_max_bytes: int = _setting(
        4096 * MIB,
        "Galleries",
        "Bytes of memory that all enrolled faces may take, and of disk about as many: 4 for each number of"
        " an embedding, some 90 more a face, and 200 for every different set of labels. Faces beyond that"
        " are refused with GALLERY_FULL.",
        ge=MIB,
    )

    max_message_bytes: int = _setting(
        32 * MIB, "Limits", "Bytes of the largest request and response.", ge=MIB, le=1024 * MIB
    )
    max_image_bytes: int = _setting(
        20 * MIB,
        "Limits",
        "Bytes of the largest photo, as it comes in; at most `--max-message-bytes`.",
        ge=1024,
        le=1024 * MIB,
    )
    max_image_pixels: int = _setting(
        50_000_000,
        "Limits",
        "Pixels (width times height) of the largest photo, known from its header before decoding.",
        ge=112 * 112,
        le=1_000_000_000,
    )
    max_faces: int = _setting(
        100, "Limits", "Faces in one answer, for calls that ask for all faces.", ge=1, le=1000
    )
    max_pending_requests: int = _setting(
        1024,
        "Limits",
        "Calls in progress. More are refused with QUEUE_FULL.",
        ge=1,
        le=1_000_000,
    )
    max_pending_bytes: int = _setting(
        1024 * MIB,
        "Limits",
        "Bytes of the requests of the calls in progress. More are refused with QUEUE_FULL. At least"
        " `--max-message-bytes`.",
        ge=MIB,
    )
    max_decode_requests: int | None = _setting(
        None,
        "Limits",
        "Photos that are decoded or wait for it. none: that of `--max-pending-requests`.",
        ge=1,
        le=1_000_000,
    )
    max_decode_bytes: int | None = _setting(
        None,
        "Limits",
        "Bytes that those photos have as they came in. none: that of `--max-pending-bytes`.",
        ge=MIB,
    )
    max_queued_requests: int | None = _setting(
        None,
        "Limits",
        "Requests in the queues of all models together. none: that of `--max-pending-requests`.",
        ge=1,
        le=1_000_000,
    )
    max_queued_bytes: int | None = _setting(
        None,
        "Limits",
        "Bytes that those requests hold, of a photo its decoded pixels: 3 for each. none: that of"
        " `--max-pending-bytes`.",
        ge=MIB,
    )

    cpu_cores: int = _setting(
        0,
        "Devices",
        "Processor cores that the models may use. 0: all that this process may run on.",
        ge=0,
        le=1024,
    )
    decode_threads: int = _setting(
        0,
        "Devices",
        "Threads that decode photos and align faces. 0: as many as cores.",
        ge=0,
        le=1024,
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Logging", "The least severe lines to log. debug adds a line for every call."
    )
    log_format: Literal["text", "json"] = _setting(
        "text", "Logging", "text for people, json for one JSON object a line. Lines go to stderr."
    )

    lame_duck_secs: float = _setting(
        0.0,
        "Shutdown",
        "Seconds to go on serving after SIGTERM while the health service already says NOT_SERVING,"
        " so that load balancers turn away first.",
        ge=0,
        le=3600,
    )
    exit_timeout_secs: float = _setting(
        30.0,
        "Shutdown",
        "Seconds that accepted calls may take to finish after that; what still runs is cancelled.",
        ge=0,
        le=3600,
    )

    @field_validator("model_repository", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("load_model", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named_models_are_loaded(self) -> Self:
        if self.load_model and self.model_control_mode != "explicit":
            mode = name_of("model_control_mode")
            raise ValueError(
                f"{name_of('load_model')}: only {mode} explicit picks models, not"
                f" {self.model_control_mode}"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.allow_metrics and self.grpc_port == self.metrics_port != 0:
            raise ValueError(
                f"{name_of('metrics_port')}: {self.metrics_port} is that of {name_of('grpc_port')}, too"
            )
        return self

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        sizes = ("max_image_bytes", "max_message_bytes", "max_pending_bytes")
        for smaller, larger in pairwise(sizes):
            if (low := getattr(self, smaller)) > (high := getattr(self, larger)):
                raise ValueError(
                    f"{name_of(smaller)}: {low} is more than {name_of(larger)}: {high}"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (init), then variables, then the file that either of them names."""
        del dotenv_settings, file_secret_settings
        sources = (init_settings, env_settings)
        path = init_settings().get("config") or env_settings().get("config")
        if path is None:
            return sources
        return (*sources, InitSettingsSource(settings_cls, init_kwargs=_read_toml(Path(path))))


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force: `flags` (by setting name), then MIEN_* variables, file, defaults.

    Raises:
        SettingsError: a value is out of range or of the wrong type, or the file is unreadable.
    """
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error))) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{name_of('config')}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{name_of('config')}: {path} is not valid TOML: {error}") from error


def flag_of(name: str) -> str:
    """The command-line flag of a setting: `grpc_port` is `--grpc-port`."""
    return "--" + name.replace("_", "-")


def env_of(name: str) -> str:
    """The environment variable of a setting: `grpc_port` is `MIEN_GRPC_PORT`."""
    return ENV_PREFIX + name.upper()


def name_of(name: str) -> str:
    """A setting as errors name it: `--grpc-port (MIEN_GRPC_PORT)`."""
    return f"{flag_of(name)} ({env_of(name)})"


def _explain(error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            yield message
            continue
        name = str(problem["loc"][0])
        if name not in Settings.model_fields:
            yield f"{name}: no such setting; the configuration page lists them all"
        else:
            yield f"{name_of(name)}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def default_text(info: FieldInfo) -> str:
    """A setting's default as an operator would write it."""
    value = info.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return os.pathsep.join(str(part) for part in value) or "none"
    return str(value)


def range_text(info: FieldInfo) -> str:
    """A setting's permitted values: "0 to 65535", "text, json", "true or false", or ""."""
    if info.annotation is bool:
        return "true or false"
    choices = getattr(info.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(choices)
    bounds = {
        kind: getattr(mark, kind)
        for mark in info.metadata
        for kind in ("ge", "gt", "le")
        if hasattr(mark, kind)
    }
    low = f"{bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else ""
    if not low:
        return ""
    return f"{low} to {bounds['le']}" if "le" in bounds else f"{low} or more"


def settings_of(group: str) -> dict[str, FieldInfo]:
    """The settings of one of `GROUPS`, by name, in the order of the class."""
    return {
        name: info
        for name, info in Settings.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra["group"] == group
    }


_INTRODUCTION = """\
# Configuration

Every setting of `mien-server serve` is a flag, an environment variable and a key of a TOML file. A
flag beats a variable, a variable beats the file, the file beats the default. `--config` or
`MIEN_CONFIG` names the file; its keys are the flags' names with underscores:

```toml
grpc_port = 9001
model_repository = ["/models/faces", "/models/more"]
log_format = "json"
```

A value that cannot hold stops the start with a message that names the flag and the variable. Names
that Triton has too mean the same here.

This page is generated from the settings themselves: `python -m mien_server.settings`."""


def configuration_page() -> str:
    """docs/configuration.md."""
    lines = [_INTRODUCTION]
    for group in GROUPS:
        lines += [
            "",
            f"## {group}",
            "",
            "| flag | variable | default | values | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{flag_of(name)}` | `{env_of(name)}` | `{default_text(info)}` | {range_text(info)}"
            f" | {info.description} |"
            for name, info in settings_of(group).items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(configuration_page(), end="")
