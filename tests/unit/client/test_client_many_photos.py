"""`mien detect` of several photos, and embeddings from files as sides of `mien verify`."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from PIL import Image

import mien
from mien.v1 import face_pb2 as pb

Run = Callable[..., tuple[int, str, str]]
SFACE = {"name": "sface", "version": 2, "fingerprint": "0123456789abcdef"}
SAVED = {"embedding": [0.6, -0.8, 0, 0], "norm": 9.5, "model": SFACE}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    names = [f"{letter}.png" for letter in "abc"]
    for number, name in enumerate(names):
        Image.new("RGB", (100, 100 + number), "gray").save(name)
    return names


def by_height(request: Any, context: Any) -> Any:
    """No face in the second photo, a refusal of the third."""
    with Image.open(io.BytesIO(request.image.encoded)) as picture:
        height = picture.height
    if height == 102:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no photo of ours")
    faces = [pb.Face(score=0.9, box=pb.Box(x1=1, y1=2, x2=30, y2=40))] if height == 100 else []
    return pb.DetectResponse(faces=faces, image_width=100, image_height=height)


def test_several_photos_are_one_table_and_a_failure_ends_no_other(
    run: Run, peer: Any, photos: list[str]
) -> None:
    peer.script.extend([by_height] * 3)
    status, output, errors = run("detect", *photos)
    assert status == 1
    assert output.startswith(
        "photo    face  score   x1   y1    x2    y2\n"
        "a.png       1  0.900  1.0  2.0  30.0  40.0\n"
        "b.png    none      -    -    -     -     -\n"
        "c.png  failed      -    -    -     -     -\n"
        "\n"
        "2 photos, 1 faces, 1 failed\n"
    )
    assert errors == "mien: c.png: no photo of ours [INVALID_ARGUMENT, Detect]\n"


def test_several_photos_are_one_document(run: Run, peer: Any, photos: list[str]) -> None:
    peer.script.extend([by_height] * 3)
    status, output, errors = run("detect", *photos, "none.png", "--json")
    assert (status, errors, output.count("\n")) == (1, "", 1)
    a, b, c, missing = json.loads(output)
    assert (a["photo"], a["faces"][0]["box"]) == ("a.png", [1, 2, 30, 40])
    assert b == {"photo": "b.png", "faces": []}
    assert c["error"]["code"] == "INVALID_ARGUMENT"
    assert missing["error"]["reason"] == "FILE_ERROR"


def test_what_would_fail_for_every_photo_is_said_once(
    run: Run, peer: Any, photos: list[str]
) -> None:
    info = error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="mien")
    peer.refuses(grpc.StatusCode.NOT_FOUND, "no such model", info, times=3)
    status, output, errors = run("detect", *photos)
    assert (status, output) == (1, "")
    assert errors == "mien: no such model [MODEL_NOT_FOUND, Detect]\n"


def test_a_busy_server_is_waited_for(run: Run, peer: Any, photos: list[str]) -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(20)
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="mien")
    peer.refuses(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info, delay, times=4)
    assert run("detect", *photos)[0] == 0


def test_pictures_of_several_photos_go_into_a_folder(run: Run, photos: list[str]) -> None:
    assert run("detect", *photos, "--out", "drawn/here")[0] == 0
    assert sorted(path.name for path in Path("drawn/here").iterdir()) == photos
    with Image.open("drawn/here/a.png") as picture:
        assert picture.convert("L").getextrema() != (128, 128)
    assert run("detect", photos[0], "--out", "drawn")[0] == 0
    assert Path("drawn/a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "out.png"], "of several photos it is a folder"),
        (["--out", "."], "would overwrite the photos"),
        (["other/a.png", "--out", "drawn"], "have the same name"),
        (["--timing"], "--timing is of one photo"),
        (["-", "-"], "only one photo can come from standard input"),
    ],
)
def test_what_several_photos_cannot_have_is_a_wrong_command_line(
    run: Run, peer: Any, photos: list[str], arguments: list[str], said: str
) -> None:
    status, _, errors = run("detect", *photos, *arguments)
    assert status == 2
    assert said in errors
    assert peer.received == []


@pytest.mark.parametrize(
    "document", [SAVED, [SAVED], {"faces": [SAVED]}, {**SAVED, "box": [1, 2, 3, 4]}]
)
def test_a_saved_embedding_is_either_side_of_verify(
    run: Run, peer: Any, photos: list[str], document: Any
) -> None:
    Path("known.json").write_text(json.dumps(document))
    assert run("verify", "known.json", photos[0])[0] == 0
    assert run("verify", photos[0], "known.json")[0] == 0
    first, second = (received.request for received in peer.received)
    for subject in (first.a, second.b):
        assert mien.Embedding.from_dict(SAVED).values.tolist() == list(subject.embedding.values)
        assert subject.embedding.model.fingerprint == SFACE["fingerprint"]
    assert first.b.image.encoded == second.a.image.encoded == Path(photos[0]).read_bytes()


def test_what_embed_prints_can_be_piped_into_verify(
    run: Run, peer: Any, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, output, _ = run("embed", photos[0], "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(output.encode())))
    assert run("verify", "-", photos[1])[0] == 0
    assert peer.received[1].request.a.embedding.norm == 9.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no embedding (Expecting"),
        ("[]", "holds 0 embeddings"),
        (json.dumps([SAVED, SAVED]), "holds 2 embeddings"),
        ('{"norm": 1}', "for it has no 'model'"),
        ("[1]", "is no embedding"),
        (json.dumps({**SAVED, "embedding": ["x"]}), "is no embedding (could not convert"),
    ],
)
def test_a_file_without_an_embedding_is_told_with_what_it_should_be(
    run: Run, peer: Any, photos: list[str], content: str, said: str
) -> None:
    Path("known.json").write_text(content)
    status, _, errors = run("verify", photos[0], "known.json")
    assert status == 1
    assert errors.startswith("mien: known.json ")
    assert said in errors
    assert errors.endswith(" [INVALID_EMBEDDING]\n")
    assert peer.received == []
