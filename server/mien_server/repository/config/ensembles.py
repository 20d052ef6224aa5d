"""Ensembles: a `config.pbtxt` of `platform: "ensemble"` that chains a detector and an embedder.

The one chain there is: an encoded photo, the detector's largest face, that face aligned, the embedder's
vector of it. Between the steps mien aligns the face itself, which no model of a repository does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from mien_server.models.interface import TensorSpec
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.repository.config.fields import ENSEMBLE_FIELDS, check_fields
from mien_server.repository.config.pbtxt import ConfigText, FieldPath
from mien_server.repository.config.tensors import read_specs

ENSEMBLE_PLATFORM = "ensemble"
ENSEMBLE_VERSION = 1
"""An ensemble has no files and so no version folders: it always is version 1."""

ALIGNED_FACE = "aligned_face"
"""The tensor between the two steps."""

FaceValue: TypeAlias = Literal["boxes", "scores", "landmarks", "embedding"]

# What a detector and an embedder call their outputs, and the shape of one face's.
_DETECTOR_OUTPUTS: dict[FaceValue, tuple[int, ...]] = {
    "boxes": (4,),
    "scores": (1,),
    "landmarks": (5, 2),
}
_EMBEDDER_OUTPUTS: dict[FaceValue, tuple[int, ...]] = {"embedding": (-1,)}


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble: its name, and its version, where 0 is the highest that is ready."""

    model: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class EnsembleConfig:
    """An ensemble's configuration.

    Attributes:
        name: its folder.
        detector: the first step.
        embedder: the second step.
        max_batch_size: photos that one request may bring; 0: one, without a batch dimension.
        inputs: one, the encoded photos, TYPE_STRING [1].
        outputs: at least one.
        values: by output name, what of the face it is.
    """

    name: str
    detector: EnsembleStep
    embedder: EnsembleStep
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    values: Mapping[str, FaceValue]

    def misfit(self, embedder_outputs: Sequence[TensorSpec]) -> str:
        """Why an embedder's outputs are not what the ensemble promises, or ""."""
        size = embedder_outputs[0].dims
        for spec in self.outputs:
            if self.values[spec.name] == "embedding" and spec.dims != size:
                return (
                    f"output {spec.name!r} promises {list(spec.dims)}, but the embedding of"
                    f" {self.embedder.model!r} has {list(size)}"
                )
        return ""


def is_ensemble(text: ConfigText) -> bool:
    """Whether a config is an ensemble's."""
    return bool(text.message.platform == ENSEMBLE_PLATFORM)


def read_ensemble(text: ConfigText) -> EnsembleConfig:
    """The ensemble that a config of `platform: "ensemble"` describes.

    Raises:
        ConfigError: it is not a detector step and then an embedder step; names the step and the field.
    """
    check_fields(text, ENSEMBLE_FIELDS)
    name, message = text.model_name(), text.message
    if message.max_batch_size < 0:
        raise text.error(("max_batch_size",), "must be 0 or more")
    inputs, outputs = read_specs(message.input), read_specs(message.output)
    if len(inputs) != 1 or (inputs[0].data_type, inputs[0].dims) != ("TYPE_STRING", (1,)):
        raise text.error(("input",), "must be one encoded photo: TYPE_STRING, dims [ 1 ]")
    steps = message.ensemble_scheduling.step
    if len(steps) != 2:
        raise text.error(
            ("ensemble_scheduling", "step"),
            f"has {len(steps)} steps; must have two, a detector and then an embedding model",
        )
    detector, embedder = (_step(text, index) for index in range(2))
    _check_input(text, 0, DETECTOR.inputs[0].name, inputs[0].name, "the ensemble's input")
    face = EMBEDDER.inputs[0].name
    _check_input(text, 1, face, ALIGNED_FACE, "the detector's largest face, which mien aligns")
    values: dict[str, FaceValue] = {}
    for index, known in enumerate((_DETECTOR_OUTPUTS, _EMBEDDER_OUTPUTS)):
        _add_values(text, index, known, values)
    _check_outputs(text, outputs, values)
    return EnsembleConfig(
        name=name,
        detector=detector,
        embedder=embedder,
        max_batch_size=message.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        values={spec.name: values[spec.name] for spec in outputs},
    )


def _step(text: ConfigText, index: int) -> EnsembleStep:
    step = text.message.ensemble_scheduling.step[index]
    at = _at(index)
    if not step.model_name:
        raise text.error(at, f"step {index} names no model; add model_name")
    # Triton's -1 is "the version policy's latest"; a config that leaves the field out has 0.
    if step.model_version < -1:
        raise text.error((*at, "model_version"), "must be -1 for the latest, or a version")
    return EnsembleStep(step.model_name, max(step.model_version, 0))


def _check_input(text: ConfigText, index: int, tensor: str, source: str, what: str) -> None:
    given = dict(text.message.ensemble_scheduling.step[index].input_map)
    if given != {tensor: source}:
        raise text.error(
            (*_at(index), "input_map"),
            f'step {index} must take {what}: input_map {{ key: "{tensor}", value: "{source}" }}',
        )


def _add_values(
    text: ConfigText, index: int, known: Iterable[FaceValue], found: dict[str, FaceValue]
) -> None:
    """Notes, by tensor of the ensemble, which output of the step it is."""
    at = (*_at(index), "output_map")
    for key, tensor in text.message.ensemble_scheduling.step[index].output_map.items():
        value = next((name for name in known if name == key), None)
        if value is None:
            raise text.error(
                (*at, key), f"step {index} has no output {key!r}, only {', '.join(known)}"
            )
        if tensor in found:
            raise text.error((*at, key), f"{tensor!r} of step {index} is given twice")
        found[tensor] = value


def _check_outputs(
    text: ConfigText, outputs: tuple[TensorSpec, ...], values: Mapping[str, FaceValue]
) -> None:
    if not outputs:
        raise text.error(("output",), "is missing; name at least one output of the steps")
    shapes = _DETECTOR_OUTPUTS | _EMBEDDER_OUTPUTS
    for index, spec in enumerate(outputs):
        at: FieldPath = ("output", index)
        if spec.name not in values:
            raise text.error(
                (*at, "name"), f"no step has {spec.name!r} in its output_map: {_listed(values)}"
            )
        if spec.name in [other.name for other in outputs[:index]]:
            raise text.error((*at, "name"), f"{spec.name!r} is given twice")
        shape = shapes[values[spec.name]]
        free = shape == (-1,)
        fits = len(spec.dims) == 1 and spec.dims[0] > 0 if free else spec.dims == shape
        if spec.data_type != "TYPE_FP32" or not fits:
            wanted = "the embedding's size" if free else str(list(shape))
            raise text.error((*at, "dims"), f"of {spec.name!r} must be TYPE_FP32, {wanted}")
    unused = set(values) - {spec.name for spec in outputs}
    if unused:
        raise text.error(
            ("output",), f"lacks what the steps' output_map promises: {_listed(unused)}"
        )


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _at(index: int) -> FieldPath:
    return ("ensemble_scheduling", "step", index)
