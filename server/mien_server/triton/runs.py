"""What ModelInfer runs: a request's rows in one model's slot, or its photos through an ensemble."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, MienError, Reason
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.running import run_rows, together
from mien_server.pipeline.types import (
    ArrayF32,
    Call,
    EncodedImage,
    Face,
    FacePolicy,
    FaceSelection,
    ImageU8,
    ModelRef,
)
from mien_server.repository.config.ensembles import EnsembleConfig, FaceValue
from mien_server.repository.versions import Lease, ReadyModel
from mien_server.triton.classification import classified
from mien_server.triton.tensors import (
    has_raw_contents,
    input_shape,
    raw_pixels,
    requested_outputs,
    strings,
    typed_pixels,
)

INLINE_BYTES = 2 * 1024 * 1024
"""Raw contents up to this size are interleaved on the event loop. It takes 5 µs for a crop and 0.1 ms for a
canvas of 640 pixels, about as long as handing them to another thread."""

_LARGEST = FaceSelection(FacePolicy.LARGEST)


async def run_model(
    lease: Lease, request: Any, call: Call, pool: PicturePool
) -> dict[str, NDArray[Any]]:
    """Runs the rows of an `inference.ModelInferRequest` in a model's slot.

    Args:
        lease: of the model; held by the caller.
        request: images [N, 3, S, S], RGB uint8, where S is one of the model's sides.
        call: gets the stages.
        pool: reads contents that take long.

    Returns:
        The outputs asked for, by name, rows first: what the model's role makes of its results, as float32 or
        as classes.

    Raises:
        InvalidRequest: the tensors are not what the model's configuration says.
        SchedulingError: why there is no result.
    """
    model, config = lease.model, lease.model.config
    wanted = requested_outputs(request, config.outputs)
    spec = config.inputs[0]
    shape = input_shape(request, spec, batched=True)
    _check_rows(model, shape[0])
    side = shape[-1]
    if shape[2] != side or side not in config.sides:
        sizes = ", ".join(f"{known}x{known}" for known in config.sides)
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            f"input {spec.name!r} has images of {shape[2]}x{side} pixels; must be one of {sizes}.",
            field="inputs[0].shape",
        )
    images = await _read(request, spec.name, shape, call, pool, raw=has_raw_contents(request, spec))
    rows = [config.role.row(image, config.options) for image in images]
    results = await run_rows(
        lease, rows, call, nbytes=math.prod(shape), passed=0, deadline=call.deadline
    )
    names = (output.name for output in config.outputs)
    outputs = dict(zip(names, config.role.arrays(results), strict=True))
    labels = {each.name: config.role.labels(config.options, each) for each in config.outputs}
    return await classified({name: outputs[name] for name in wanted}, wanted, labels, pool)


async def run_ensemble(
    ensemble: EnsembleConfig, request: Any, call: Call, pipeline: FacePipeline, pool: PicturePool
) -> dict[str, NDArray[Any]]:
    """Runs the encoded photos of an `inference.ModelInferRequest` through the pipeline, all at once.

    Returns:
        The outputs asked for, by name, rows first: of each photo's largest face its box [4], score [1],
        landmarks [5, 2], in pixels of the upright photo, and embedding [d], of unit length.

    Raises:
        InvalidRequest: the tensors are not what the configuration says, or a photo is none.
        Unmet: a photo without a usable face. Errors about a photo name its row.
        SchedulingError: why there is no result.
    """
    wanted = requested_outputs(request, ensemble.outputs)
    spec = ensemble.inputs[0]
    batched = ensemble.max_batch_size > 0
    shape = input_shape(request, spec, batched=batched)
    if batched and shape[0] > ensemble.max_batch_size:
        raise _too_many(ensemble.name, shape[0], ensemble.max_batch_size)
    raw = has_raw_contents(request, spec)
    photos = strings(request, spec.name, shape[0], raw=raw)

    async def face(row: int, photo: bytes) -> Face:
        part = replace(call, stages=[])
        try:
            found = await pipeline.embed(
                EncodedImage(photo),
                detector=ModelRef(ensemble.detector.model, ensemble.detector.version),
                embedder=ModelRef(ensemble.embedder.model, ensemble.embedder.version),
                selection=_LARGEST,
                call=part,
            )
        except MienError as error:
            # The pipeline names its own arguments: the caller sent none but the photo and the ensemble.
            if error.field.startswith("image"):
                error.field = f"inputs[0].row[{row}]"
                error.message = f"input {spec.name!r}, row {row}: {error.message}"
            else:
                error.field = "model_name"
            raise
        call.stages += part.stages
        return found.faces[0]

    faces = await together(*(face(row, photo) for row, photo in enumerate(photos)))
    values = {name: _values(faces, ensemble.values[name]) for name in wanted}
    outputs = await classified(values, wanted, {}, pool)
    return outputs if batched else {name: array[0] for name, array in outputs.items()}


def _check_rows(model: ReadyModel, rows: int) -> None:
    policy = model.config.batching
    if rows > policy.max_batch_size and not policy.split_rows:
        raise _too_many(model.name, rows, policy.max_batch_size)


def _too_many(name: str, rows: int, limit: int) -> InvalidRequest:
    return InvalidRequest(
        Reason.INVALID_REQUEST,
        f"model {name!r} takes at most {limit} rows a request (max_batch_size), not {rows}.",
        field="inputs[0].shape",
    )


async def _read(
    request: Any, name: str, shape: Sequence[int], call: Call, pool: PicturePool, *, raw: bool
) -> list[ImageU8]:
    """The images [H, W, 3] that a request holds as planes [N, 3, H, W]."""
    planes = raw_pixels(request, name, shape) if raw else None
    if planes is not None and planes.nbytes <= INLINE_BYTES:
        return _interleaved(planes)

    def read() -> list[ImageU8]:
        return _interleaved(typed_pixels(request, name, shape) if planes is None else planes)

    images, _ = await pool.decode(read, nbytes=request.ByteSize(), deadline=call.deadline)
    return images


def _interleaved(planes: NDArray[np.uint8]) -> list[ImageU8]:
    """OpenCV does it ten times faster than numpy's transpose, and releases the interpreter meanwhile."""
    return [np.asarray(cv2.merge(list(image)), np.uint8) for image in planes]


def _values(faces: Sequence[Face], value: FaceValue) -> ArrayF32:
    return np.stack([_value(face, value) for face in faces])


def _value(face: Face, value: FaceValue) -> ArrayF32:
    # Every face of an answer to an encoded photo has all of these.
    found: Any
    match value:
        case "boxes":
            found = face.box
        case "scores":
            found = [face.score]
        case "landmarks":
            found = face.landmarks
        case "embedding":
            found = face.embedding and face.embedding.values
    return np.asarray(found, np.float32)
