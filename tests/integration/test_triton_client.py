"""The public tritonclient against a running mien: inference, streams, statistics, errors, load."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as tritonclient
import tritonclient.grpc.aio as tritonclient_aio
from PIL import Image
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

import mien
from mien_server.pipeline.align import crop_faces

Sample = Callable[[str], Path]

# Where two runs may differ: batches of other sizes, and bfloat16 on processors that have it.
SAME_DIRECTION = 1e-3


@pytest.fixture
def triton(server_address: str) -> Iterator[Any]:
    with tritonclient.InferenceServerClient(server_address) as client:
        yield client


@pytest.fixture(scope="module")
def client(server_address: str) -> Iterator[mien.Client]:
    with mien.Client(server_address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def crops(client: mien.Client, portraits: list[Path]) -> np.ndarray[Any, Any]:
    """The largest face of each portrait, aligned: [6, 112, 112, 3] RGB."""
    found = []
    for path in portraits:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        landmarks = client.detect(path, policy="largest").faces[0].landmarks
        assert landmarks is not None
        found += crop_faces(pixels, points(landmarks)[None])
    return np.stack(found)


def pixels_input(name: str, images: np.ndarray[Any, Any]) -> list[InferInput]:
    """Images [N, H, W, 3] as the planes [N, 3, H, W] that Triton's models take."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tensor = InferInput(name, list(planes.shape), "UINT8")
    tensor.set_data_from_numpy(planes)
    return [tensor]


def photos_input(*photos: bytes) -> list[InferInput]:
    tensor = InferInput("image", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, np.object_).reshape(-1, 1))
    return [tensor]


def points(landmarks: mien.Landmarks) -> np.ndarray[Any, Any]:
    """Landmarks as [5, 2] float32."""
    return np.array(list(landmarks.as_dict().values()), np.float32)


def unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    units: np.ndarray[Any, Any] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), caught.value.message()


def test_the_server_introduces_itself(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.get_server_metadata().name == "mien"
    states = {m.name: m.state for m in triton.get_model_repository_index().models}
    for name in ("retinaface", "sface", "face_embedding"):
        assert states[name] == "READY"
        assert triton.is_model_ready(name)
        assert triton.get_model_metadata(name).name == name
        assert triton.get_model_config(name).config.name == name
    assert states["arcface"] == "UNAVAILABLE"
    assert not triton.is_model_ready("arcface")
    sface = triton.get_model_config("sface").config
    assert sface.max_batch_size == 32
    assert sface.dynamic_batching.preferred_batch_size == [4]


def test_embeddings_are_those_of_embed_on_the_same_crops(
    triton: Any, client: mien.Client, crops: np.ndarray[Any, Any]
) -> None:
    together = triton.infer("sface", pixels_input("face", crops)).as_numpy("embedding")
    assert together.shape == (6, 128)
    for crop, vector in zip(crops, together, strict=True):
        embedding = client.embed(crop, aligned=True).embedding
        assert float(unit(vector) @ embedding.values) == pytest.approx(1, abs=SAME_DIRECTION)
        alone = triton.infer("sface", pixels_input("face", crop[None])).as_numpy("embedding")[0]
        assert float(unit(alone) @ embedding.values) == pytest.approx(1, abs=SAME_DIRECTION)
        # Raw, with the norm that Embed reports.
        assert float(np.linalg.norm(alone)) == pytest.approx(embedding.norm, rel=2e-2)


def test_detections_are_those_of_detect_on_the_same_canvas(
    triton: Any, client: mien.Client, portraits: list[Path]
) -> None:
    canvases = []
    for path in portraits[:3]:
        with Image.open(path) as picture:
            canvases.append(np.asarray(picture.convert("RGB").resize((320, 320))))
    canvases.append(np.zeros((320, 320, 3), np.uint8))
    result = triton.infer("retinaface", pixels_input("image", np.stack(canvases)))
    boxes, scores = result.as_numpy("boxes"), result.as_numpy("scores")
    landmarks = result.as_numpy("landmarks")
    assert not scores[3].any()
    for row, canvas in enumerate(canvases[:3]):
        faces = client.detect(canvas).faces
        assert int((scores[row] > 0).sum()) == len(faces)
        assert faces[0].box is not None
        assert faces[0].landmarks is not None
        np.testing.assert_allclose(boxes[row, 0], faces[0].box.as_list(), atol=0.05)
        np.testing.assert_allclose(landmarks[row, 0], points(faces[0].landmarks), atol=0.05)
        assert scores[row, 0] == pytest.approx(faces[0].score, abs=1e-3)


def test_the_ensemble_is_embed_for_whole_photos(
    triton: Any, client: mien.Client, portraits: list[Path]
) -> None:
    result = triton.infer(
        "face_embedding", photos_input(*[path.read_bytes() for path in portraits]), request_id="all"
    )
    vectors = result.as_numpy("embedding")
    for row, path in enumerate(portraits):
        face = client.embed(path).faces[0]
        assert face.embedding is not None
        assert face.box is not None
        assert face.landmarks is not None
        cosine = float(vectors[row] @ face.embedding.values)
        assert cosine == pytest.approx(1, abs=SAME_DIRECTION)
        np.testing.assert_allclose(
            result.as_numpy("box")[row], face.box.as_list(), atol=0.1, rtol=1e-3
        )
        np.testing.assert_allclose(
            result.as_numpy("landmarks")[row], points(face.landmarks), atol=0.1, rtol=1e-3
        )
        assert result.as_numpy("score")[row] == pytest.approx([face.score], abs=1e-3)
    assert result.get_response().id == "all"


def test_one_bad_photo_fails_its_request_by_row(triton: Any, portraits: list[Path]) -> None:
    good = portraits[0].read_bytes()
    code, told = refusal(lambda: triton.infer("face_embedding", photos_input(good, good[:500])))
    assert code == "INVALID_ARGUMENT"
    assert "row 1" in told
    code, told = refusal(lambda: triton.infer("face_embedding", photos_input(b"text", good)))
    assert code == "INVALID_ARGUMENT"
    assert "row 0" in told


def test_outputs_may_be_chosen(triton: Any, portraits: list[Path]) -> None:
    result = triton.infer(
        "face_embedding",
        photos_input(portraits[0].read_bytes()),
        outputs=[InferRequestedOutput("box")],
    )
    assert result.as_numpy("box").shape == (1, 4)
    assert result.as_numpy("embedding") is None


def test_errors_have_tritons_codes(triton: Any) -> None:
    crop = pixels_input("face", np.zeros((1, 112, 112, 3), np.uint8))
    small = pixels_input("face", np.zeros((1, 64, 64, 3), np.uint8))
    other = pixels_input("picture", np.zeros((1, 112, 112, 3), np.uint8))
    floats = InferInput("face", [1, 3, 112, 112], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 3, 112, 112), np.float32))
    canvas = pixels_input("image", np.zeros((1, 333, 333, 3), np.uint8))
    shared = InferInput("face", [1, 3, 112, 112], "UINT8")
    shared.set_shared_memory("region", 37632)
    cases: list[tuple[str, str, str, Any, dict[str, Any]]] = [
        ("NOT_FOUND", "nobody", "nobody", crop, {}),
        ("NOT_FOUND", "version 99", "sface", crop, {"model_version": "99"}),
        ("UNAVAILABLE", "no weights", "arcface", crop, {}),
        ("INVALID_ARGUMENT", "'face' has shape", "sface", small, {}),
        ("INVALID_ARGUMENT", "given: 'picture'", "sface", other, {}),
        ("INVALID_ARGUMENT", "'face' must be UINT8", "sface", [floats], {}),
        ("INVALID_ARGUMENT", "333x333", "retinaface", canvas, {}),
        ("INVALID_ARGUMENT", "shared_memory_byte_size", "sface", [shared], {}),
        ("INVALID_ARGUMENT", "no state", "sface", crop, {"sequence_id": 1}),
        (
            "INVALID_ARGUMENT",
            "no output 'logits'",
            "sface",
            crop,
            {"outputs": [InferRequestedOutput("logits")]},
        ),
        (
            "INVALID_ARGUMENT",
            "classification",
            "sface",
            crop,
            {"outputs": [InferRequestedOutput("embedding", class_count=-3)]},
        ),
    ]
    for code, words, model, inputs, options in cases:
        found, told = refusal(lambda: triton.infer(model, inputs, **options))  # noqa: B023
        assert (found, words in told) == (code, True), told
    assert triton.infer("sface", crop).as_numpy("embedding").shape == (1, 128)


def test_what_is_not_served_says_so(triton: Any) -> None:
    for call in (
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        triton.get_trace_settings,
        triton.get_log_settings,
    ):
        code, told = refusal(call)
        assert code == "UNIMPLEMENTED"
        assert told


def test_models_are_not_loaded_on_request_outside_of_explicit_mode(triton: Any) -> None:
    for call in (triton.load_model, triton.unload_model):
        code, told = refusal(lambda call=call: call("sface"))  # type: ignore[misc]
        assert code == "FAILED_PRECONDITION"
        assert "--model-control-mode" in told
    assert triton.is_model_ready("sface")


def test_statistics_grow_by_what_was_asked(triton: Any) -> None:
    def look() -> Any:
        (stats,) = triton.get_inference_statistics("sface", "1").model_stats
        return stats

    before = look()
    for rows in (1, 3, 5):
        triton.infer("sface", pixels_input("face", np.full((rows, 112, 112, 3), 99, np.uint8)))
    after = look()
    assert after.inference_count - before.inference_count == 9
    now, then = after.inference_stats, before.inference_stats
    assert now.success.count - then.success.count == 3
    assert now.fail.count == then.fail.count
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    for part in parts:
        assert getattr(now, part).count - getattr(then, part).count == 3
    spent = sum(getattr(now, part).ns - getattr(then, part).ns for part in parts)
    assert 0 < spent <= now.success.ns - then.success.ns

    def batches(stats: Any) -> int:
        return sum(each.compute_infer.count for each in stats.batch_stats)

    assert batches(after) == after.execution_count
    assert sum(s.batch_size * s.compute_infer.count for s in after.batch_stats) >= 9
    assert after.last_inference >= before.last_inference


def test_stream_answers_in_order(triton: Any, crops: np.ndarray[Any, Any]) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(12):
        model = "nobody" if i == 5 else "sface"
        inputs = pixels_input("face", crops[i % 6][None])
        triton.async_stream_infer(
            model, inputs, request_id=str(i), enable_empty_final_response=True
        )
    received = [answers.get(timeout=60) for _ in range(12)]
    triton.stop_stream()
    assert answers.empty()
    for i, (result, error) in enumerate(received):
        if i == 5:
            assert "nobody" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(i)
        assert result.as_numpy("embedding").shape == (1, 128)
    np.testing.assert_allclose(
        unit(received[0][0].as_numpy("embedding")),
        unit(received[6][0].as_numpy("embedding")),
        atol=0.05,
    )


async def test_the_client_for_asyncio_does_the_same(
    server_address: str, crops: np.ndarray[Any, Any], portraits: list[Path]
) -> None:
    async with tritonclient_aio.InferenceServerClient(server_address) as triton:
        assert await triton.is_server_ready()
        assert await triton.is_model_ready("sface", "1")
        names = {m.name for m in (await triton.get_model_repository_index()).models}
        assert {"sface", "retinaface", "face_embedding"} <= names
        results = await asyncio.gather(
            *(triton.infer("sface", pixels_input("face", crop[None])) for crop in crops),
            triton.infer("face_embedding", photos_input(portraits[0].read_bytes())),
        )
        assert [r.as_numpy("embedding").shape for r in results] == [(1, 128)] * 7
        (stats,) = (await triton.get_inference_statistics("sface")).model_stats
        assert stats.inference_stats.success.count >= 7

        async def requests() -> Any:
            for crop in crops:
                yield {"model_name": "sface", "inputs": pixels_input("face", crop[None])}

        answers = [answer async for answer in triton.stream_infer(requests())]
        assert [error for _, error in answers] == [None] * 6


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8, 16, 32])
def test_random_pixels_at_any_concurrency(server_address: str, concurrency: int) -> None:
    """What perf_analyzer does: each worker sends the next request when it has its answer."""
    ready = threading.Barrier(concurrency)

    def work(seed: int) -> int:
        pixels = np.random.default_rng(seed).integers(0, 256, (1, 112, 112, 3), np.uint8)
        inputs = pixels_input("face", pixels)
        with tritonclient.InferenceServerClient(server_address) as triton:
            ready.wait(30)
            results = [triton.infer("sface", inputs).as_numpy("embedding") for _ in range(4)]
        assert all(np.isfinite(result).all() for result in results)
        return len(results)

    with ThreadPoolExecutor(concurrency) as workers:
        assert sum(workers.map(work, range(concurrency))) == 4 * concurrency
