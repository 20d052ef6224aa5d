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
from mien_server.variables import unknown_variables

ENV_PREFIX = "MIEN_"
GROUPS = (
    *("Listening", "Access", "Models", "Galleries"),
    *("Limits", "Devices", "Logging", "Tracing", "Shutdown"),
)
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
        "The IP address to listen on. 0.0.0.0 or ::: every interface. Beyond loopback it takes"
        " `--tls-cert` and `--tls-key`, or `--insecure`.",
    )
    grpc_port: int = _setting(
        8001,
        "Listening",
        "The TCP port of the gRPC endpoint. 0: any free one; the ready line of the log names it.",
        ge=0,
        le=65535,
    )
    grpc_socket: Path | None = _setting(
        None,
        "Listening",
        "A Unix socket to listen on instead of `--grpc-address` and `--grpc-port`; clients call unix:PATH.",
    )
    grpc_socket_mode: str = _setting(
        "600",
        "Listening",
        "Who may connect to that socket: its mode, in octal. 660: its group, too.",
        pattern="^[0-7]{3}$",
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

    keys_file: Path | None = _setting(
        None,
        "Access",
        "The file of API keys and of client certificates' names, which `mien-server keys` writes. With it"
        " the server answers only callers that are in it; none: it answers everybody.",
    )
    tls_cert: Path | None = _setting(
        None,
        "Access",
        "A PEM file of the server's certificate, followed by those that signed it. With it the server speaks"
        " TLS alone.",
    )
    tls_key: Path | None = _setting(
        None, "Access", "A PEM file of its private key, without a password."
    )
    tls_client_ca: Path | None = _setting(
        None,
        "Access",
        "A PEM file of the authorities whose client certificates count. With it every client must show one;"
        " what its name may do, `--keys-file` says.",
    )
    insecure: bool = _setting(
        False,
        "Access",
        "Listen beyond loopback without TLS: photos, vectors and keys cross the network in plain text.",
    )

    jwt_jwks: str | None = _setting(
        None,
        "Access",
        "The public keys (JSON Web Key Set) of who signs the tokens of callers: a file, or an https address.",
    )
    jwt_algorithm: Literal["RS256", "ES256", "EdDSA"] = _setting(
        "RS256",
        "Access",
        "How tokens are signed. No other signature is taken, whatever a token says.",
    )
    jwt_issuer: str = _setting("", "Access", "Who must have issued a token: its `iss`.")
    jwt_audience: str = _setting(
        "", "Access", "Whom a token must be for: what its `aud` is, or has in it."
    )
    jwt_roles_claim: str = _setting(
        "roles",
        "Access",
        "The claim that says what a token's subject may do: a list of words, or words with spaces between"
        " them. `a.b`: the claim b in the claim a.",
        min_length=1,
    )
    jwt_role: Annotated[tuple[str, ...], NoDecode] = _setting(
        (),
        "Access",
        "WORD=ROLE: what role a word of that claim stands for. Repeat the flag for several; in the variable,"
        " separate them by commas. none: the words are infer, enrol, read, admin themselves.",
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
        "A model to load at the start under `--model-control-mode explicit`, which must serve then; `*`: all"
        " that have weights. Repeat the flag for several; in the variable, separate them by commas.",
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
        "Bytes of memory that all enrolled faces may take: one for each number of an embedding, 100 more a"
        " face, and 200 for every different set of labels; on disk some three times as many. Faces beyond"
        " that are refused with GALLERY_FULL.",
        ge=MIB,
    )

    gallery_url: str | None = _setting(
        None,
        "Galleries",
        "A Milvus that keeps the galleries instead of a folder, for several servers: milvus://host:port, or"
        " milvus+tls://host:port, and /database where it is not the default one. It takes mien[milvus].",
    )
    gallery_token_file: Path | None = _setting(
        None,
        "Galleries",
        "A file with what proves to that Milvus who asks: user:password, or an API key. none: it asks for"
        " nothing.",
    )
    gallery_tls_ca: Path | None = _setting(
        None,
        "Galleries",
        "A PEM file of the authorities that may sign that Milvus' certificate, for milvus+tls://. none: the"
        " public ones.",
    )
    gallery_tls_cert: Path | None = _setting(
        None,
        "Galleries",
        "A PEM file of a certificate to show to that Milvus, where it asks for one, followed by those that"
        " signed it.",
    )
    gallery_tls_key: Path | None = _setting(
        None, "Galleries", "A PEM file of its private key, without a password."
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
    max_arriving_requests: int | None = _setting(
        None,
        "Limits",
        "Calls whose request is still on its way, of up to `--max-message-bytes` each, and open streams. More"
        " are refused with QUEUE_FULL; a request that takes longer than its deadline, or"
        " `--default-deadline-secs`, with DEADLINE_EXCEEDED. none: that of `--max-pending-requests`.",
        ge=1,
        le=1_000_000,
    )
    max_health_checks: int = _setting(
        8,
        "Limits",
        "Health checks whose request is on its way, beside those of calls. Others wait for their turn.",
        ge=1,
        le=1_000_000,
    )
    health_check_timeout_secs: float = _setting(
        2.0,
        "Limits",
        "Seconds that the request of a health check may take; then it is DEADLINE_EXCEEDED.",
        ge=0.1,
        le=3600,
    )
    max_metrics_connections: int = _setting(
        8,
        "Limits",
        "Connections of the metrics port. Each has a thread; more are closed unanswered.",
        ge=1,
        le=1000,
    )
    max_connections: int | None = _setting(
        None,
        "Limits",
        "Connections of gRPC. More are closed as they come in. none: as many as leave 128 file descriptors"
        " for the rest, 10,000 at most.",
        ge=1,
        le=1_000_000,
    )
    handshake_timeout_secs: float = _setting(
        10.0,
        "Limits",
        "A connection that has not said for so long what it is, or one of the metrics that is silent for so"
        " long, is closed.",
        ge=0.1,
        le=3600,
    )
    max_connection_idle_secs: float = _setting(
        900.0,
        "Limits",
        "A connection without a call for so long is closed; clients connect again when they need it. 0:"
        " never.",
        ge=0,
        le=1_000_000,
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
        "Bytes of photos: as they came in while they wait, and of their pixels, 3 for each, from before they"
        " are decoded until they are freed. none: that of `--max-pending-bytes`.",
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

    caller_rate: float | None = _setting(
        None,
        "Limits",
        "Calls a second that each caller may make in the long run; more are refused with CALLER_LIMIT."
        " Messages of streams count as calls, and wait. none: any number.",
        gt=0,
        le=1_000_000,
    )
    caller_burst: int | None = _setting(
        None,
        "Limits",
        "Calls that a caller may make at once after a rest. none: those of a second.",
        ge=1,
        le=1_000_000,
    )
    caller_max_calls: int | None = _setting(
        None,
        "Limits",
        "Calls that each caller may have in progress, streams among them; more are refused with CALLER_LIMIT."
        " none: any number.",
        ge=1,
        le=1_000_000,
    )
    max_concurrent_streams: int = _setting(
        4096,
        "Limits",
        "Calls in progress on one connection. A client makes the others wait; those that it sends before it"
        " knows the limit are UNAVAILABLE.",
        ge=1,
        le=1_000_000,
    )
    max_connection_age_secs: float | None = _setting(
        None,
        "Limits",
        "Seconds after which a connection is ended, so that clients behind a balancer spread anew: no new"
        " calls, and those in progress finish. none: never.",
        gt=0,
        le=31_536_000,
    )
    max_connection_age_grace_secs: float = _setting(
        60.0,
        "Limits",
        "Seconds that the calls of such a connection may take to finish; then they are cancelled.",
        gt=0,
        le=31_536_000,
    )
    keepalive_secs: float = _setting(
        120.0,
        "Limits",
        "Seconds without traffic after which a client is pinged, so that one that is gone is noticed.",
        ge=10,
        le=86_400,
    )
    keepalive_timeout_secs: float = _setting(
        20.0,
        "Limits",
        "Seconds that it may take to answer before its connection is closed.",
        ge=1,
        le=3600,
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
        "info", "Logging", "The least severe lines to log."
    )
    access_log: bool = _setting(
        True,
        "Logging",
        "Whether each call gets a line at info: method, status, durations, batch, request id. false: at"
        " debug.",
    )
    log_format: Literal["text", "json"] = _setting(
        "text", "Logging", "text for people, json for one JSON object a line. Lines go to stderr."
    )

    otlp_endpoint: str | None = _setting(
        None,
        "Tracing",
        "Where calls' spans are sent: http://host:port of a collector that takes OTLP over gRPC, or https://"
        " for TLS. It takes mien[tracing]. none: calls are not traced.",
        pattern="^https?://[^@/]+/?$",
    )
    trace_ratio: float = _setting(
        1.0,
        "Tracing",
        "Of the calls that come without a trace, the share that is traced. With one, its caller has decided.",
        ge=0,
        le=1,
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

    @property
    def decode_limits(self) -> tuple[int, int]:
        """How many photos may be decoded or wait for it, and how many bytes they may have."""
        return (
            self.max_decode_requests or self.max_pending_requests,
            self.max_decode_bytes or self.max_pending_bytes,
        )

    @property
    def queue_limits(self) -> tuple[int, int]:
        """How many requests may be in the queues of all models, and how many bytes they may hold."""
        return (
            self.max_queued_requests or self.max_pending_requests,
            self.max_queued_bytes or self.max_pending_bytes,
        )

    @field_validator("model_repository", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("load_model", "jwt_role", mode="before")
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
    def _access_is_whole(self) -> Self:
        pairs = [("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")]
        if self.jwt_jwks is None:
            pairs += [("tls_client_ca", "keys_file")]
        pairs += [("gallery_tls_cert", "gallery_tls_key"), ("gallery_tls_key", "gallery_tls_cert")]
        pairs += [("gallery_tls_cert", "gallery_tls_ca")]
        for given, missing in (*pairs, ("jwt_jwks", "jwt_issuer"), ("jwt_jwks", "jwt_audience")):
            if getattr(self, given) and not getattr(self, missing):
                raise ValueError(f"{name_of(given)}: it takes {name_of(missing)}, too")
        if "://" in (source := self.jwt_jwks or "") and not source.startswith("https://"):
            raise ValueError(
                f"{name_of('jwt_jwks')}: {source} is neither a file nor an https address"
            )
        return self

    @model_validator(mode="after")
    def _galleries_have_one_place(self) -> Self:
        if self.gallery_url and self.gallery_dir:
            raise ValueError(f"{name_of('gallery_url')}: it goes not with {name_of('gallery_dir')}")
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
        SettingsError: a value is out of range or of the wrong type, a variable or a key of the file is no
            setting's, or the file is unreadable.
    """
    unknown = [*unknown_variables(os.environ, ENV_PREFIX, [*map(env_of, Settings.model_fields)])]
    try:
        settings = Settings(**(flags or {}))
    except ValidationError as error:
        raise SettingsError("\n".join([*_explain(error), *unknown])) from error
    if unknown:
        raise SettingsError("\n".join(unknown))
    return settings


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

A value that cannot hold stops the start with a message that names the flag and the variable, and so does a
variable that begins with `MIEN_`, or a key of the file, that is no setting. The client's `MIEN_ADDRESS`,
`MIEN_API_KEY` and `MIEN_TOKEN` may be there, and what Kubernetes sets for a Service whose name begins with
`mien`; but of one called `mien-grpc` or `mien-metrics`, that would be a setting's own name: take another, or
set `enableServiceLinks: false`.

Names that Triton has too mean the same here.

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
