"""tritonclient and `mien models` against a server that loads on request: explicit mode, fp32."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

import mien
from tests.commands import run_mien
from tools.local_server import LocalServer

MIEN = Path(sys.executable).parent / "mien"


@pytest.fixture
def triton(explicit: LocalServer) -> Iterator[Any]:
    with tritonclient.InferenceServerClient(explicit.address) as client:
        yield client
        client.load_model("sface")


def crops(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 112, 112, 3), np.uint8)


def embed(triton: Any, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tensor = InferInput("face", list(planes.shape), "UINT8")
    tensor.set_data_from_numpy(planes)
    vectors: np.ndarray[Any, Any] = triton.infer("sface", [tensor]).as_numpy("embedding")
    return vectors


def states(triton: Any, name: str) -> dict[str, str]:
    index = triton.get_model_repository_index().models
    return {m.version: m.state for m in index if m.name == name}


def test_fp32_vectors_are_embeds_to_the_fifth_digit(triton: Any, explicit: LocalServer) -> None:
    images = crops(6)
    vectors = embed(triton, images)
    with mien.Client(explicit.address, timeout=60) as client:
        for image, vector in zip(images, vectors, strict=True):
            expected = client.embed(image, aligned=True).embedding.values
            np.testing.assert_allclose(vector / np.linalg.norm(vector), expected, atol=1e-5)


def test_unload_and_load_while_the_server_runs(triton: Any) -> None:
    before = embed(triton, crops(1))
    triton.unload_model("sface")
    assert not triton.is_model_ready("sface")
    assert "READY" not in states(triton, "sface").values()
    assert not triton.is_model_ready("face_embedding")
    assert states(triton, "face_embedding") == {"1": "UNAVAILABLE"}
    with pytest.raises(InferenceServerException) as caught:
        embed(triton, crops(1))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    triton.load_model("sface")
    assert triton.is_model_ready("sface")
    assert triton.is_model_ready("face_embedding")
    np.testing.assert_allclose(embed(triton, crops(1)), before, rtol=1e-5, atol=1e-5)


def test_statistics_begin_anew_with_a_version_that_was_loaded(triton: Any) -> None:
    embed(triton, crops(2))
    triton.unload_model("sface")
    with pytest.raises(InferenceServerException):
        triton.get_inference_statistics("sface")
    triton.load_model("sface")
    (stats,) = triton.get_inference_statistics("sface").model_stats
    assert (stats.inference_count, stats.inference_stats.success.count) == (0, 0)


def test_a_load_that_fails_says_why_and_leaves_the_old_version(
    triton: Any, explicit_repository: Path
) -> None:
    config = explicit_repository / "sface" / "config.pbtxt"
    good = config.read_text()
    config.write_text(good.replace("max_batch_size: 32", "max_batch_size: 32\nensemble: 1"))
    try:
        with pytest.raises(InferenceServerException) as caught:
            triton.load_model("sface")
    finally:
        config.write_text(good)
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert "ensemble" in caught.value.message()
    assert "config.pbtxt" in caught.value.message()
    assert triton.is_model_ready("sface")
    assert embed(triton, crops(1)).shape == (1, 128)


def test_unknown_model_is_not_loaded(triton: Any) -> None:
    for call in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call("nobody")
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_ensemble_whose_sizes_do_not_match_does_not_replace_one_that_works(
    triton: Any, explicit_repository: Path
) -> None:
    config = explicit_repository / "face_embedding" / "config.pbtxt"
    good = config.read_text()
    config.write_text(good.replace("dims: [ 128 ]", "dims: [ 512 ]"))
    try:
        with pytest.raises(InferenceServerException, match=r"promises \[512\]"):
            triton.load_model("face_embedding")
        assert triton.is_model_ready("face_embedding")
        (line,) = [
            m for m in triton.get_model_repository_index().models if m.name == "face_embedding"
        ]
        assert "[512]" in line.reason
    finally:
        config.write_text(good)
        triton.load_model("face_embedding")
    assert triton.is_model_ready("face_embedding")


def mien_models(address: str, *arguments: str) -> tuple[int, str, str]:
    return run_mien("models", *arguments, "--address", address)


def test_mien_models_shows_what_there_is(explicit: LocalServer) -> None:
    status, output, errors = mien_models(explicit.address, "ls")
    assert (status, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["model", "version", "state", "reason"]
    assert ["sface", "1", "READY"] in lines
    assert ["arcface", "-", "UNAVAILABLE"] in [line[:3] for line in lines]
    found = json.loads(mien_models(explicit.address, "ls", "--json")[1])
    assert {"name": "sface", "version": 1, "state": "READY", "reason": ""} in found
    _, output, _ = mien_models(explicit.address, "show", "sface")
    assert "[-1, 3, 112, 112]" in output
    assert "max_batch_size: 32" in output
    shown = json.loads(mien_models(explicit.address, "show", "arcface", "--json")[1])
    assert (shown["platform"], shown["versions"][0]["state"]) == ("", "UNAVAILABLE")


def test_mien_models_loads_and_unloads(triton: Any, explicit: LocalServer) -> None:
    status, output, _ = mien_models(explicit.address, "unload", "sface", "--json")
    assert status == 0
    assert [line["state"] for line in json.loads(output)] != ["READY"]
    assert not triton.is_model_ready("sface")
    status, output, _ = mien_models(explicit.address, "load", "sface", "--json")
    assert status == 0
    assert [line["state"] for line in json.loads(output)] == ["READY"]
    status, output, errors = mien_models(explicit.address, "load", "nobody", "--json")
    assert (status, output) == (1, "")
    assert json.loads(errors)["reason"] == "MODEL_NOT_FOUND"


def test_mien_models_counts(triton: Any, explicit: LocalServer) -> None:
    def look() -> dict[str, Any]:
        (figures,) = json.loads(mien_models(explicit.address, "stats", "sface", "--json")[1])
        return dict(figures)

    before = look()
    embed(triton, crops(3))
    after = look()
    assert after["requests"] - before["requests"] == 1
    assert after["rows"] - before["rows"] == 3
    assert sum(after["batch_sizes"].values()) == after["batches"]
    _, output, _ = mien_models(explicit.address, "stats")
    header = output.splitlines()[0].split()
    assert header[:4] == ["model", "version", "requests", "failed"]


def test_mien_models_watches(triton: Any, explicit: LocalServer) -> None:
    options = ["--interval", "0.2", "--json", "--address", explicit.address]
    with subprocess.Popen(
        [str(MIEN), "models", "watch", "sface", *options], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        seen = 0
        for line in watch.stdout:
            tick = json.loads(line)
            assert tick["seconds"] > 0
            seen += tick["models"][0]["rows"]
            if seen:
                break
            embed(triton, crops(2))
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 0
    assert seen
