"""`mien embed FOLDER --out FILE`: what is written, what failed, and how an interrupted command goes on."""

import csv
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import mien
from mien import embedding_files
from mien.progress import Progress
from mien.v1 import face_pb2 as pb
from tests.unit.client.conftest import DETECTOR, IDENTITY, VALUES, WELL, Peer, Run, face
from tests.unit.client.test_client_bulk import by_photo, failure

PARTLY = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos in two folders, each with its own bytes: its name."""
    folder = tmp_path / "photos"
    for name in ("a/1.jpg", "a/2.jpg", "a/deep/3.PNG", "b/4.webp", "5.jpg", "6.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("no photo")
    return folder


NAMES = ["5.jpg", "6.jpg", "a/1.jpg", "a/2.jpg", "a/deep/3.PNG", "b/4.webp"]


def sent(peer: Peer) -> list[str]:
    return sorted(call.request.image.encoded.decode() for call in peer.received)


def test_npz_has_a_row_for_each_face(run: Run, folder: Path, tmp_path: Path) -> None:
    status, output, errors = run("embed", folder, "--out", tmp_path / "faces.npz")
    assert (status, errors) == (0, "")
    assert "6 photos: 6 embedded, 0 before, 0 failed; 6 faces in" in output
    with np.load(tmp_path / "faces.npz", allow_pickle=False) as found:
        assert found["photo"].tolist() == NAMES
        assert found["face"].tolist() == [0] * 6
        np.testing.assert_array_equal(found["embedding"], [np.array(VALUES, np.float32)] * 6)
        np.testing.assert_array_equal(found["box"], [[10.5, 20.25, 60, 90]] * 6)
        np.testing.assert_allclose(found["score"], 0.97)
        np.testing.assert_allclose(found["norm"], 9.5)
        identity = (IDENTITY.name, IDENTITY.version, IDENTITY.fingerprint)
        assert (str(found["model"]), int(found["version"]), str(found["fingerprint"])) == identity
    assert (
        list(tmp_path.iterdir()) == [folder, tmp_path / "faces.npz"]
        or len(list(tmp_path.iterdir())) == 2
    )


def test_csv_has_the_same(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("embed", folder, "--out", tmp_path / "faces.CSV", "--aligned")[0] == 0
    with (tmp_path / "faces.CSV").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == NAMES
    assert [np.float32(rows[0][f"e{i}"]) for i in range(4)] == [np.float32(v) for v in VALUES]
    assert (rows[0]["x1"], rows[0]["norm"]) == ("", "9.5")
    assert rows[0]["fingerprint"] == IDENTITY.fingerprint


def test_parquet_has_the_same(run: Run, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("embed", folder, "--out", tmp_path / "faces.parquet")[0] == 0
    table = parquet.read_table(tmp_path / "faces.parquet")
    assert table["photo"].to_pylist() == NAMES
    assert table["face"].to_pylist() == [0] * 6
    np.testing.assert_array_equal(
        np.stack(table["embedding"].to_numpy()), [np.array(VALUES, np.float32)] * 6
    )
    assert table["x1"].to_pylist() == [10.5] * 6
    metadata = table.schema.metadata
    assert metadata[b"fingerprint"] == IDENTITY.fingerprint.encode()
    assert (metadata[b"model"], metadata[b"version"]) == (b"sface", b"2")


def test_parquet_without_pyarrow_names_the_extra(
    run: Run, peer: Peer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, errors = run("embed", folder, "--out", tmp_path / "faces.parquet")
    assert status == 1
    assert "pip install 'mien[parquet]'" in errors
    assert not peer.received
    assert not list(tmp_path.glob("faces*"))


def test_every_face_of_a_photo(run: Run, peer: Peer, folder: Path, tmp_path: Path) -> None:
    def crowd(request: Any, context: Any) -> Any:
        assert request.selection.policy == pb.FACE_POLICY_ALL
        faces = [face(embedding=True)] * 3
        return pb.EmbedResponse(faces=faces, embedder=IDENTITY, detector=DETECTOR)

    def nobody(request: Any, context: Any) -> Any:
        return pb.EmbedResponse(embedder=IDENTITY, detector=DETECTOR)

    by_photo(peer, {b"6.jpg": crowd, b"5.jpg": nobody})
    assert run("embed", folder, "--all", "--out", tmp_path / "faces.npz")[0] == 0
    with np.load(tmp_path / "faces.npz") as found:
        assert found["photo"].tolist() == ["6.jpg"] * 3 + NAMES[2:]
        assert found["face"].tolist() == [0, 1, 2, 0, 0, 0, 0]


def test_photos_that_fail_are_told_and_the_rest_is_written(
    run: Run, peer: Peer, folder: Path, tmp_path: Path
) -> None:
    by_photo(
        peer,
        {
            b"5.jpg": failure(grpc.StatusCode.FAILED_PRECONDITION, "FACE_NOT_FOUND"),
            b"a/1.jpg": failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_IMAGE"),
        },
    )
    status, output, _ = run("embed", folder, "--out", tmp_path / "faces.npz", "--json")
    assert status == PARTLY
    told = json.loads(output)
    assert (told["photos"], told["faces"]) == (4, 4)
    assert sorted((each["photo"], each["reason"]) for each in told["failed"]) == [
        (str(folder / "5.jpg"), "FACE_NOT_FOUND"),
        (str(folder / "a" / "1.jpg"), "INVALID_IMAGE"),
    ]
    with np.load(tmp_path / "faces.npz") as found:
        assert found["photo"].tolist() == [n for n in NAMES if n not in ("5.jpg", "a/1.jpg")]


def test_nothing_to_write_is_a_failure(run: Run, peer: Peer, folder: Path, tmp_path: Path) -> None:
    refused = failure(grpc.StatusCode.FAILED_PRECONDITION, "FACE_NOT_FOUND")
    by_photo(peer, {name.encode(): refused for name in NAMES})
    status, output, errors = run("embed", folder, "--out", tmp_path / "faces.npz")
    assert status == 1
    assert "6 failed" in output
    assert "no face to write" in errors
    assert not list(tmp_path.glob("faces*"))


def interrupted(run: Run, peer: Peer, folder: Path, out: Path) -> None:
    """Begins the command, and ends it by an error of the server once all photos but the last are done.

    The last, since the call of another one could still come when the command has ended.
    """
    no_more = failure(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    peer.script.extend([*[WELL["Embed"]] * 5, no_more])
    assert run("embed", folder, "--out", out, "--concurrency", 1)[0] == 1
    assert not out.exists()
    assert (out.parent / f"{out.name}.partial").exists()
    assert not peer.script
    peer.received.clear()


def test_interrupted_command_goes_on(run: Run, peer: Peer, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces.npz"
    interrupted(run, peer, folder, out)
    status, output, _ = run("embed", folder, "--out", out)
    assert status == 0
    assert "6 photos: 1 embedded, 5 before, 0 failed" in output
    assert sent(peer) == NAMES[5:]
    with np.load(out) as found:
        assert found["photo"].tolist() == NAMES
    assert not (tmp_path / "faces.npz.partial").exists()


def test_line_that_was_cut_is_dropped(run: Run, peer: Peer, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces.npz"
    interrupted(run, peer, folder, out)
    partial = tmp_path / "faces.npz.partial"
    partial.write_bytes(partial.read_bytes()[:-7])
    assert run("embed", folder, "--out", out)[0] == 0
    assert sent(peer) == NAMES[4:]


def test_photo_that_has_changed_is_embedded_again(
    run: Run, peer: Peer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "faces.npz"
    interrupted(run, peer, folder, out)
    (folder / "6.jpg").write_bytes(b"another")
    (folder / "5.jpg").unlink()
    assert run("embed", folder, "--out", out)[0] == 0
    assert sent(peer) == ["another", NAMES[5]]
    with np.load(out) as found:
        assert found["photo"].tolist() == NAMES[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--all"], "other options"), (["--embedder", "sface:1"], "other options")],
)
def test_other_options_do_not_go_on(
    run: Run, peer: Peer, folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "faces.npz"
    interrupted(run, peer, folder, out)
    status, _, errors = run("embed", folder, "--out", out, *arguments)
    assert status == 1
    assert message in errors
    assert not peer.received


def test_another_model_does_not_go_on(run: Run, peer: Peer, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces.npz"
    interrupted(run, peer, folder, out)

    def other(request: Any, context: Any) -> Any:
        response = WELL["Embed"](request, context)
        response.embedder.fingerprint = "f" * 16
        return response

    by_photo(peer, {name.encode(): other for name in NAMES})
    status, _, errors = run("embed", folder, "--out", out)
    assert status == 1
    assert "EMBEDDING_MISMATCH" in errors
    assert f"remove {out}.partial" in errors


def test_ctrl_c_says_how_to_go_on(
    run: Run, peer: Peer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two photos. `test_interrupted_folder.py` sends signals, to a process of its own."""
    out, steps = tmp_path / "faces.npz", itertools.count()

    def interrupted_step(*_: Any, **__: Any) -> None:
        if next(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "step", interrupted_step)
        status, _, errors = run("embed", folder, "--out", out)
    assert status == 130
    assert "the same command goes on" in errors
    assert not out.exists()
    peer.script.clear()
    assert run("embed", folder, "--out", out)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["FOLDER"], 2, "--out faces.npz"),
        (["FOLDER", "--out", "faces.txt"], 1, "ends in none of .npz, .csv, .parquet"),
        (["FOLDER", "--out", "none/faces.npz"], 1, "none is no folder"),
        (["FOLDER", "--out", "there.npz"], 1, "there already"),
        (["FOLDER", "--out", "faces.npz", "--timing"], 2, "--timing"),
        (["there.npz", "--out", "faces.npz"], 2, "for a folder"),
        (["EMPTY", "--out", "faces.npz"], 1, "has no photos"),
    ],
)
def test_what_cannot_be_is_told_before_any_call(
    run: Run,
    peer: Peer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.npz").write_bytes(b"")
    places = {"FOLDER": str(folder), "EMPTY": "empty"}
    found = run("embed", *(places.get(each, each) for each in arguments))
    assert found[0] == status
    assert message in found[2]
    assert not peer.received


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def each() -> Any:
        raise OSError("the disk is full")

    model = mien.ModelIdentity("m", 1, "0" * 16)
    with pytest.raises(OSError, match="full"):
        embedding_files.write(tmp_path / "a.npz", embedding_files.Rows(model, 1, 4, each))
    assert not list(tmp_path.iterdir())


def test_one_photo_may_be_an_aligned_crop(run: Run, tmp_path: Path, peer: Peer) -> None:
    file = io.BytesIO()
    Image.new("RGB", (112, 112)).save(file, "PNG")
    (tmp_path / "crop.png").write_bytes(file.getvalue())
    assert run("embed", tmp_path / "crop.png", "--aligned")[0] == 0
    assert peer.received[0].request.image.WhichOneof("source") == "aligned_face"
