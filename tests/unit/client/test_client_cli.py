"""The command `mien`, run in this process, and as a real one where the shell matters."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from mien.v1 import face_pb2 as pb

MIEN = Path(sys.executable).parent / "mien"
Run = Callable[..., tuple[int, str, str]]


def refuse(peer: Any, reason: str, field: str = "") -> None:
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="mien")]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    peer.refuses(grpc.StatusCode.FAILED_PRECONDITION, "it cannot be", *details)


def test_detect_prints_a_table(run: Run, photo: Path) -> None:
    status, output, errors = run("detect", photo)
    assert (status, errors) == (0, "")
    assert output == (
        f"{photo}  100 x 100 pixels, 2 faces\n"
        "\n"
        "#  score    x1    y1    x2    y2\n"
        "1  0.970  10.5  20.2  60.0  90.0\n"
        "2  0.970  10.5  20.2  60.0  90.0\n"
        "\n"
        "detector  retinaface version 1 (fingerprint fedcba9876543210)\n"
    )


def test_detect_of_a_photo_without_faces_is_an_answer(run: Run, peer: Any, photo: Path) -> None:
    nothing = pb.DetectResponse(image_width=5, image_height=6)
    peer.script.extend([lambda request, context: nothing] * 2)
    status, output, _ = run("detect", photo)
    assert status == 0
    assert "5 x 6 pixels, no face\n" in output
    assert run("detect", photo, "--json") == (0, "[]\n", "")


def test_detect_json_is_a_list_of_faces(run: Run, photo: Path) -> None:
    status, output, errors = run("detect", photo, "--json")
    assert (status, errors, output.count("\n")) == (0, "", 1)
    faces = json.loads(output)
    assert len(faces) == 2
    assert faces[0]["box"] == [10.5, 20.25, 60, 90]
    assert faces[0]["score"] == 0.97
    assert faces[0]["landmarks"]["nose"] == [13, 23]


def test_a_picture_that_cannot_be_written_is_a_failure(run: Run, photo: Path) -> None:
    status, output, errors = run("detect", photo, "--out", "/no/such/folder/out.png")
    assert (status, output) == (1, "")
    assert errors == "mien: /no/such/folder/out.png: No such file or directory [FILE_ERROR]\n"


def test_embed_prints_a_table(run: Run, photo: Path) -> None:
    status, output, _ = run("embed", photo)
    assert status == 0
    assert "photo.png  100 x 100 pixels, 1 face\n" in output
    assert "9.500     4  +0.6000 -0.8000 +0.0000 +0.0000" in output
    assert "embedder  sface version 2 (fingerprint 0123456789abcdef)\n" in output


def test_embed_json_is_one_embedding(run: Run, photo: Path) -> None:
    status, output, _ = run("embed", photo, "--json")
    assert status == 0
    document = json.loads(output)
    assert document["embedding"] == [0.6, -0.8, 0, 0]
    assert document["norm"] == 9.5
    assert document["model"] == {
        "name": "sface",
        "version": 2,
        "fingerprint": "0123456789abcdef",
    }


def test_embed_all_json_is_a_list(run: Run, peer: Any, photo: Path) -> None:
    status, output, _ = run("embed", photo, "--json", "--all")
    assert status == 0
    assert [face["norm"] for face in json.loads(output)] == [9.5]
    assert peer.received[0].request.selection.policy == pb.FACE_POLICY_ALL
    peer.script.append(lambda request, context: pb.EmbedResponse())
    assert run("embed", photo, "--json", "--all")[:2] == (0, "[]\n")


def test_verify_prints_its_verdict_and_model(run: Run, photo: Path) -> None:
    status, output, _ = run("verify", photo, photo)
    assert status == 0
    assert output == (
        "similarity  0.6100\n"
        "threshold   0.363 (model)\n"
        "verdict     same person\n"
        "model       sface version 2 (fingerprint 0123456789abcdef)\n"
    )


def test_different_is_an_answer_not_a_failure(run: Run, photo: Path) -> None:
    status, output, _ = run("verify", photo, photo, "--threshold", "0.9")
    assert status == 0
    assert "threshold   0.9 (request)\nverdict     different\n" in output


def test_verify_json(run: Run, photo: Path) -> None:
    status, output, _ = run("verify", photo, photo, "--threshold", "-0.25", "--json")
    assert status == 0
    document = json.loads(output)
    assert document["similarity"] == 0.61
    assert document["threshold"] == -0.25
    assert document["matched"] is True
    assert document["model"]["name"] == "sface"


def test_options_reach_the_server(run: Run, peer: Any, photo: Path) -> None:
    assert (
        run("verify", photo, photo, "--detector", "retinaface:3", "--embedder", "arcface")[0] == 0
    )
    request = peer.received[0].request
    assert (request.detector.name, request.detector.version) == ("retinaface", 3)
    assert request.embedder.name == "arcface"


@pytest.mark.parametrize("before", [True, False])
def test_the_address_stands_before_or_after_the_command(
    run: Run, peer: Any, photo: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setenv("MIEN_ADDRESS", "127.0.0.1:1")
    options = ["--address", peer.address, "--timeout", "5", "--json"]
    command = ["detect", str(photo)]
    status, output, _ = run(*(options + command if before else command + options))
    assert status == 0
    assert len(json.loads(output)) == 2
    assert peer.received[0].seconds_left < 6


def test_timing_is_a_table_or_json_beside_the_document(run: Run, photo: Path) -> None:
    status, output, errors = run("detect", photo, "--timing")
    assert (status, errors) == (0, "")
    assert output.endswith(
        "\nstage             ms  batch\ndecode          3.10\ndetect.compute  9.50      4\n"
    )
    status, output, errors = run("detect", photo, "--timing", "--json")
    assert len(json.loads(output)) == 2
    assert json.loads(errors)["timing"][1] == {
        "name": "detect.compute",
        "milliseconds": 9.5,
        "batch": 4,
    }
    assert "timing" not in json.loads(run("verify", photo, photo, "--timing", "--json")[1])


def test_a_failure_is_one_readable_line(run: Run, peer: Any, photo: Path) -> None:
    refuse(peer, "FACE_NOT_FOUND", "image")
    assert run("embed", photo) == (1, "", "mien: it cannot be [FACE_NOT_FOUND, image, Embed]\n")


def test_a_failure_in_json_has_code_and_reason(run: Run, peer: Any, photo: Path) -> None:
    refuse(peer, "FACE_NOT_FOUND", "image")
    status, output, errors = run("embed", photo, "--json")
    assert (status, output) == (1, "")
    error = json.loads(errors)
    assert error["code"] == "FAILED_PRECONDITION"
    assert error["reason"] == "FACE_NOT_FOUND"
    assert error["message"] == "it cannot be"
    assert error["field"] == "image"


def test_no_server_is_a_failure_that_says_what_to_do(run: Run, photo: Path) -> None:
    status, _, errors = run("--address", "127.0.0.1:1", "detect", photo)
    assert status == 1
    assert errors.count("\n") == 1
    assert "127.0.0.1:1" in errors
    assert "mien-server serve" in errors


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jpg", "No such file or directory"),
        (".", "Is a directory"),
        ("photo.png/x.jpg", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_photo_that_cannot_be_read_is_a_failure(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(photo.parent)
    assert run("detect", name) == (1, "", f"mien: {name}: {said} [FILE_ERROR]\n")
    status, output, errors = run("verify", "photo.png", name, "--json")
    assert (status, output) == (1, "")
    assert json.loads(errors)["code"] == "INVALID_ARGUMENT"
    assert json.loads(errors)["reason"] == "FILE_ERROR"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["detect"],
        ["verify", "a.jpg"],
        ["dance", "a.jpg"],
        ["detect", "a.jpg", "--timeout", "0"],
        ["detect", "a.jpg", "--timeout", "inf"],
        ["detect", "a.jpg", "--timeout", "soon"],
        ["detect", "a.jpg", "--address", "http://localhost:8001"],
        ["verify", "a.jpg", "b.jpg", "--threshold", "high"],
        ["verify", "-", "-"],
    ],
)
def test_a_wrong_command_line_exits_with_2(run: Run, arguments: list[str]) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: mien")


def test_help_and_version_exit_with_0(run: Run) -> None:
    assert run("--help")[0] == run("detect", "--help")[0] == 0
    status, output, _ = run("--version")
    assert status == 0
    assert output.startswith("mien 0.")


def shell(peer: Any, *arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [MIEN, *arguments],
        env=os.environ | {"MIEN_ADDRESS": peer.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("module", ["mien", "mien.cli"])
def test_the_command_is_a_module_too(peer: Any, photo: Path, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--address", peer.address, "detect", photo, "--json"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads(done.stdout)) == 2


def test_a_photo_comes_from_standard_input(peer: Any) -> None:
    process = shell(peer, "detect", "-", "--json", stdin=subprocess.PIPE)
    output, errors = process.communicate(b"from a pipe", timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert len(json.loads(output)) == 2
    assert peer.received[0].request.image.encoded == b"from a pipe"


def test_closed_standard_input_is_a_failure_without_a_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(str(MIEN))} detect - <&-"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"mien: standard input is closed [FILE_ERROR]\n"


def test_closed_standard_output_is_no_traceback(peer: Any, photo: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(str(MIEN))} detect {shlex.quote(str(photo))} >&-"],
        env=os.environ | {"MIEN_ADDRESS": peer.address},
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_name_that_is_not_utf8_is_printed_as_best_it_can(peer: Any, photo: Path) -> None:
    name = os.fsencode(photo.parent) + b"/caf\xe9.png"
    shutil.copy(photo, os.fsdecode(name))
    process = shell(peer, "detect", name)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert b"/caf\\udce9.png  100 x 100 pixels" in output


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(peer: Any, photo: Path, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [MIEN, "detect", photo, "--json"],
        env=os.environ | {"MIEN_ADDRESS": peer.address, "PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


def test_interrupting_is_no_traceback(peer: Any, photo: Path) -> None:
    release = threading.Event()
    entered = peer.holds(release)
    process = shell(peer, "detect", str(photo))
    assert entered.wait(60)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    release.set()
    assert (process.returncode, output, errors) == (130, b"", b"")


def test_without_pillow_the_extra_is_named(peer: Any, photo: Path) -> None:
    code = (
        "import sys; sys.modules['PIL'] = None; from mien.cli import main;"
        f"sys.exit(main(['detect', {str(photo)!r}, '--out', 'x.png', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["reason"] == "MISSING_EXTRA"
    assert "pip install 'mien[pictures]'" in json.loads(done.stderr)["message"]
