"""Triton's `config.pbtxt`, parsed with Triton's schema into a typed, validated `ModelConfig`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tritonclient.grpc import model_config_pb2 as triton

from mien_server.backends.precision import Precision
from mien_server.models.families import families, roles
from mien_server.models.interface import (
    CHANNEL_ORDERS,
    AnyRole,
    Normalisation,
    TensorSpec,
    normalisation_of,
)
from mien_server.repository.config.ensembles import EnsembleConfig, is_ensemble, read_ensemble
from mien_server.repository.config.fields import MODEL_FIELDS, check_fields
from mien_server.repository.config.parameters import Parameters
from mien_server.repository.config.pbtxt import ConfigError, ConfigText
from mien_server.repository.config.policy import QUEUE_PARAMETERS, read_batching
from mien_server.repository.config.tensors import (
    Warmup,
    read_inputs,
    read_outputs,
    read_warmup,
)
from mien_server.repository.config.traffic import TRAFFIC_PARAMETERS, read_traffic
from mien_server.repository.traffic import Traffic
from mien_server.scheduling.batching import BatchingPolicy

__all__ = ["ConfigError", "InstanceGroup", "ModelConfig", "Warmup", "read_config"]

Backend: TypeAlias = Literal["pytorch", "onnxruntime", "openvino"]
"""What runs a model."""

_BACKENDS: tuple[Backend, ...] = ("pytorch", "onnxruntime", "openvino")
_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    ".safetensors": ("auto", "fp32", "bf16", "fp16"),
    ".onnx": ("auto", "fp32", "fp16", "int8"),
}
_SUFFIXES: dict[Backend, tuple[str, ...]] = {
    "pytorch": (".safetensors",),
    "onnxruntime": (".onnx",),
    "openvino": (".onnx", ".safetensors"),
}
"""What kinds of weights a backend runs; the first is what it expects."""
_ONNX_PLATFORM = "onnxruntime_onnx"
"""Triton's older name for that backend."""

_PARAMETERS = frozenset(
    {
        *("architecture", "precision", "channel_order", "mean", "scale", "license", "source"),
        *("cpu_backend", "idle_unload_secs"),
        *QUEUE_PARAMETERS,
        *TRAFFIC_PARAMETERS,
    }
)
"""Those that models of any role may have."""

_MAX_COUNT = 1024


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Where a model runs, and how many of its batches at once.

    Attributes:
        kind: "auto" is a GPU where there is one, else the processor.
        count: batches at once on each device; 0: as many as the device runs.
        gpus: indices of the GPUs; empty: all there are.
    """

    kind: Literal["auto", "cpu", "gpu"]
    count: int = 0
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model's configuration, named as in config.pbtxt; `parameters` hold what is mien's own.

    Attributes:
        name: the model's folder.
        backend: what runs it, on a GPU at least.
        cpu_backend: what runs it on the processor.
        architecture: the family's name in `models.families`.
        role: the family's: what the model takes and gives.
        precision: what to compute in.
        normalisation: how pixels become the network's input.
        options: what the role's own parameters say: `DetectorOptions` of a detector.
        batching: how requests share batches.
        instance_groups: where it runs; at least one.
        inputs, outputs: the tensors that Triton's protocol shows.
        default_model_filename: the weights' file in a version folder.
        license, source: free text: who may use the weights for what, and where they come from.
        warmup: what runs before the model is ready.
        latest_versions: how many of the highest to load; None: all, or `specific_versions`.
        specific_versions: exactly these versions, if not empty.
        traffic: which of the loaded versions answer calls that name none.
        idle_unload_secs: after so many seconds without a call its memory is given back, until the next
            call; 0: never.
    """

    name: str
    backend: Backend
    architecture: str
    role: AnyRole
    precision: Precision
    normalisation: Normalisation
    options: Any
    batching: BatchingPolicy
    instance_groups: tuple[InstanceGroup, ...]
    cpu_backend: Backend = "openvino"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    default_model_filename: str = "model.safetensors"
    license: str = ""
    source: str = ""
    warmup: tuple[Warmup, ...] = ()
    latest_versions: int | None = 1
    specific_versions: tuple[int, ...] = ()
    traffic: Traffic = field(default_factory=Traffic)
    idle_unload_secs: float = 0.0

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides in pixels of the square images that the network gets."""
        return self.role.sides(self.options)

    def wanted_versions(self, available: Iterable[int]) -> tuple[int, ...]:
        """What version_policy asks for, highest first; a specific version may be missing."""
        if self.specific_versions:
            return tuple(sorted(self.specific_versions, reverse=True))
        return tuple(sorted(available, reverse=True)[: self.latest_versions])

    def runs_like(self, other: "ModelConfig") -> bool:
        """Whether a version loaded under the other config need not be loaded again under this one."""
        alike = self.role is other.role and self.role.run_alike(self.options, other.options)
        return alike and self == replace(
            other,
            options=self.options,
            license=self.license,
            source=self.source,
            latest_versions=self.latest_versions,
            specific_versions=self.specific_versions,
            traffic=self.traffic,
            idle_unload_secs=self.idle_unload_secs,
        )


def read_config(path: Path) -> ModelConfig | EnsembleConfig:
    """Parses and validates one config.pbtxt. Fields without effect are logged as warnings.

    Raises:
        ConfigError: the file, line and field at fault, and the fix.
    """
    return parse_config(ConfigText.read(path))


def parse_config(text: ConfigText) -> ModelConfig | EnsembleConfig:
    """Validates a config.pbtxt whose text has been read; `text.message` has the name afterwards.

    Raises:
        ConfigError: as `read_config` says.
    """
    return read_ensemble(text) if is_ensemble(text) else _read_model(text)


def _read_model(text: ConfigText) -> ModelConfig:
    check_fields(text, MODEL_FIELDS)
    name = text.model_name()
    backend = _backend(text)
    filename = _filename(text, backend)
    parameters = Parameters(text, known_parameters())
    architecture = parameters.choice("architecture", sorted(families()))
    role = families()[architecture].role
    for key in sorted(known_parameters() - _PARAMETERS - role.parameters):
        if key in parameters:
            raise parameters.error(key, f"has no meaning for {architecture}; remove it")

    options = role.read_options(parameters)
    batching = read_batching(text, parameters)
    inputs, outputs = read_inputs(text, role), read_outputs(text, role)
    options = role.with_tensors(options, parameters, inputs, outputs)
    latest, specific = _versions(text)
    return ModelConfig(
        name=name,
        backend=backend,
        cpu_backend=parameters.choice("cpu_backend", sorted({"openvino", backend}), "openvino"),
        architecture=architecture,
        role=role,
        precision=parameters.choice("precision", _PRECISIONS[Path(filename).suffix], "auto"),
        normalisation=_normalisation(parameters, filename),
        options=options,
        batching=batching,
        instance_groups=_instance_groups(text),
        inputs=inputs,
        outputs=outputs,
        default_model_filename=filename,
        license=parameters.text("license", ""),
        source=parameters.text("source", ""),
        warmup=read_warmup(text, inputs, role.sides(options), batching.max_batch_size),
        latest_versions=latest,
        specific_versions=specific,
        traffic=read_traffic(text, parameters),
        idle_unload_secs=parameters.number("idle_unload_secs", 0.01, 1e9, 0.0),
    )


def known_parameters() -> frozenset[str]:
    """Every parameter that a model of some role may have."""
    return _PARAMETERS.union(*(role.parameters for role in roles().values()))


def _normalisation(parameters: Parameters, filename: str) -> Normalisation:
    values = {}
    for key, high in (("mean", 255), ("scale", 1)):
        numbers = parameters.numbers(key, 0, high)
        if len(numbers) not in (1, 3):
            raise parameters.error(
                key, f"has {len(numbers)} values; must be 1 or 3, in channel_order"
            )
        values[key] = numbers
    if 0 in values["scale"]:
        raise parameters.error("scale", "must be above 0")
    order = parameters.choice("channel_order", CHANNEL_ORDERS)
    if order == "GREY" and not filename.endswith(".onnx"):
        raise parameters.error("channel_order", "is GREY, which only ONNX graphs may see")
    for key, numbers in values.items():
        if order == "GREY" and len(numbers) > 1:
            raise parameters.error(key, "has several values; must be 1 for GREY")
    return normalisation_of(order, values["mean"], values["scale"])


def _backend(text: ConfigText) -> Backend:
    named, platform = text.message.backend, text.message.platform
    if platform and platform != _ONNX_PLATFORM:
        raise text.error(
            ("platform",), f'is {platform!r}; must be "{_ONNX_PLATFORM}", or write backend instead'
        )
    if platform and named not in ("", "onnxruntime"):
        raise text.error(("platform",), f"does not fit backend {named!r}; remove one of them")
    for backend in _BACKENDS:
        if backend == (named or (platform and "onnxruntime")):
            return backend
    raise text.error(("backend",), f'is {named!r}; must be "pytorch", "onnxruntime" or "openvino"')


def _filename(text: ConfigText, backend: Backend) -> str:
    suffixes = _SUFFIXES[backend]
    filename: str = text.message.default_model_filename or f"model{suffixes[0]}"
    if Path(filename).name != filename or not filename.endswith(suffixes):
        raise text.error(
            ("default_model_filename",),
            f"is {filename!r}; for backend {backend!r} it must be a {' or '.join(suffixes)} file in the"
            " version folder",
        )
    return filename


def _versions(text: ConfigText) -> tuple[int | None, tuple[int, ...]]:
    policy = text.message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return None, ()
    if choice == "specific":
        versions = tuple(policy.specific.versions)
        at = ("version_policy", "specific", "versions")
        if not versions:
            raise text.error(at, "is empty; name at least one version")
        for version in versions:
            if version < 1:
                raise text.error(at, f"{version} must be at least 1", value=str(version))
        return None, tuple(sorted(set(versions)))
    return policy.latest.num_versions or 1, ()


def _instance_groups(text: ConfigText) -> tuple[InstanceGroup, ...]:
    groups = tuple(
        _instance_group(text, index, group)
        for index, group in enumerate(text.message.instance_group)
    )
    return groups or (InstanceGroup("auto"),)


def _instance_group(text: ConfigText, index: int, message: Any) -> InstanceGroup:
    group = triton.ModelInstanceGroup
    kinds: dict[int, Literal["auto", "cpu", "gpu"]] = {
        group.KIND_AUTO: "auto",
        group.KIND_CPU: "cpu",
        group.KIND_GPU: "gpu",
    }
    at = ("instance_group", index)
    if message.kind not in kinds:
        raise text.error((*at, "kind"), "must be KIND_AUTO, KIND_CPU or KIND_GPU")
    if not 0 <= message.count <= _MAX_COUNT:
        raise text.error(
            (*at, "count"), f"is {message.count}; must be in [1, {_MAX_COUNT}], or left out"
        )
    gpus = tuple(message.gpus)
    if gpus and message.kind == group.KIND_CPU:
        raise text.error((*at, "gpus"), "has no meaning for KIND_CPU; write KIND_GPU or remove it")
    for gpu in gpus:
        if gpu < 0 or gpus.count(gpu) > 1:
            raise text.error((*at, "gpus"), f"{gpu} must be 0 or more, once", value=str(gpu))
    return InstanceGroup(kinds[message.kind], message.count, gpus)
