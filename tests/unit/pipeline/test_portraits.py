"""The pipeline on the sample portraits, with the real networks and weights."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien_server.engine import build_engine
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.types import (
    ArrayF32,
    Call,
    Comparison,
    EncodedImage,
    Face,
    FacePolicy,
    FaceSelection,
    ImageSource,
    ModelRef,
    PhotoFaces,
)
from mien_server.settings import Settings

Encode = Callable[..., bytes]
ANY = ModelRef()
LARGEST = FaceSelection(FacePolicy.LARGEST)
ALL = FaceSelection(FacePolicy.ALL)


@pytest.fixture(scope="module")
def pipeline(model_repository_path: Path) -> Iterator[FacePipeline]:
    engine = build_engine(Settings(model_repository=(model_repository_path,)))
    engine.loader.start()
    yield engine.pipeline
    engine.close()


async def detect(pipeline: FacePipeline, data: bytes, selection: FaceSelection) -> PhotoFaces:
    return await pipeline.detect(EncodedImage(data), detector=ANY, selection=selection, call=Call())


async def embed(
    pipeline: FacePipeline, image: ImageSource, selection: FaceSelection = LARGEST
) -> Face:
    answer = await pipeline.embed(
        image, detector=ANY, embedder=ANY, selection=selection, call=Call()
    )
    return answer.faces[0]


async def verify(pipeline: FacePipeline, a: bytes, b: bytes) -> Comparison:
    return await pipeline.verify(
        EncodedImage(a),
        EncodedImage(b),
        detector=ANY,
        embedder=ANY,
        selection=LARGEST,
        threshold=None,
        call=Call(),
    )


def box_of(face: Face) -> ArrayF32:
    assert face.box is not None
    return face.box


def vector_of(face: Face) -> ArrayF32:
    assert face.embedding is not None
    return face.embedding.values


def person(path: Path) -> str:
    return path.stem if path.stem.startswith("impostor") else path.stem[:-2]


async def test_the_same_person_matches_and_others_do_not(
    pipeline: FacePipeline, portraits: list[Path]
) -> None:
    pairs = list(combinations(portraits, 2))
    assert len(pairs) == 15
    answers = await asyncio.gather(
        *(verify(pipeline, a.read_bytes(), b.read_bytes()) for a, b in pairs)
    )
    same = [c for (a, b), c in zip(pairs, answers, strict=True) if person(a) == person(b)]
    others = [c for (a, b), c in zip(pairs, answers, strict=True) if person(a) != person(b)]
    assert len(same) == 2
    assert all(c.matched and c.similarity >= 0.5 for c in same)
    assert not any(c.matched or c.similarity > 0.35 for c in others)


@pytest.mark.long
async def test_every_portrait_has_one_face_for_every_policy(
    pipeline: FacePipeline, portraits: list[Path]
) -> None:
    for path in portraits:
        boxes = []
        for policy in FacePolicy:
            answer = await detect(pipeline, path.read_bytes(), FaceSelection(policy))
            assert len(answer.faces) == 1, (path.name, policy)
            boxes.append(box_of(answer.faces[0]))
        # The coarse and the fine canvas agree within a tenth of the face.
        size = (boxes[0][2:] - boxes[0][:2]).max()
        assert np.ptp(np.stack(boxes), axis=0).max() <= 0.1 * size


async def test_all_eight_orientations_give_the_same_face(
    pipeline: FacePipeline, portraits: list[Path], encode: Encode
) -> None:
    upright = Image.open(portraits[0]).convert("RGB")
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    faces = []
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(image, "JPEG", quality=95, exif=exif)
        faces.append(await embed(pipeline, EncodedImage(data)))
    for face in faces[1:]:
        assert np.abs(box_of(face) - box_of(faces[0])).max() < 3
        assert face.landmarks is not None
        assert face.landmarks[0, 0] < face.landmarks[1, 0]
        assert vector_of(face) @ vector_of(faces[0]) > 0.97


@pytest.mark.long
async def test_a_face_that_fills_the_photo_is_found_and_recognised(
    pipeline: FacePipeline, portraits: list[Path], encode: Encode
) -> None:
    for path in portraits:
        whole = await embed(pipeline, EncodedImage(path.read_bytes()))
        box = tuple(box_of(whole).round().astype(int).tolist())
        # As a camera would see it from close by: large, and nothing around it.
        close = Image.open(path).convert("RGB").crop(box)
        close = close.resize((close.width * 1200 // close.height, 1200), Image.Resampling.BICUBIC)
        data = encode(close, "JPEG", quality=95)
        for selection in (LARGEST, ALL):
            (face,) = (await detect(pipeline, data, selection)).faces
            x1, y1, x2, y2 = box_of(face)
            assert (x2 - x1) * (y2 - y1) > 0.6 * close.width * close.height, path.name
        assert vector_of(await embed(pipeline, EncodedImage(data))) @ vector_of(whole) > 0.5


@pytest.mark.long
async def test_one_face_has_one_embedding_whatever_the_policy(
    pipeline: FacePipeline, portraits: list[Path], encode: Encode
) -> None:
    scene = Image.new("RGB", (1600, 1500), (90, 110, 100))
    scene.paste(Image.open(portraits[1]), (610, 130))
    photos = [path.read_bytes() for path in portraits]
    for photo in (*photos, encode(scene, "JPEG", quality=95)):
        first = await embed(pipeline, EncodedImage(photo))
        for policy in FacePolicy:
            face = await embed(pipeline, EncodedImage(photo), FaceSelection(policy))
            assert np.abs(box_of(face) - box_of(first)).max() < 0.01, policy
            assert vector_of(face) @ vector_of(first) > 0.9999, policy


async def test_a_large_photo_is_recognised_at_reduced_scale(
    pipeline: FacePipeline, portraits: list[Path], encode: Encode
) -> None:
    whole = await embed(pipeline, EncodedImage(portraits[3].read_bytes()))
    image = Image.open(portraits[3]).convert("RGB")
    large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
    face = await embed(pipeline, EncodedImage(encode(large, "JPEG", quality=90)))
    assert np.abs(box_of(face) / 4 - box_of(whole)).max() < 0.05 * np.ptp(box_of(whole))
    assert vector_of(face) @ vector_of(whole) > 0.95


async def test_one_face_among_many_calls_is_what_it_is_alone(
    pipeline: FacePipeline, portraits: list[Path]
) -> None:
    images = [EncodedImage(path.read_bytes()) for path in portraits]
    alone = [await embed(pipeline, image) for image in images]
    crowd = await asyncio.gather(*(embed(pipeline, image) for image in images * 4))
    for i, face in enumerate(crowd):
        assert vector_of(face) @ vector_of(alone[i % len(alone)]) > 0.999
        assert np.abs(box_of(face) - box_of(alone[i % len(alone)])).max() < 2
