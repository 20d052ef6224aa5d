"""`analyze`: what is asked, and what comes of the answer, by both clients and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from PIL import Image, ImageChops

import mien
from mien.v1 import face_pb2 as pb
from tests.unit.client.conftest import IDENTITY, VALUES, Peer, Run, analyzed

Call = Callable[..., Any]


def test_everything_that_is_asked_goes_into_the_request(
    call: Call, peer: Peer, photo: Path
) -> None:
    call(
        "analyze",
        photo,
        analysers=["mood", "age:2", ("live", 3)],
        policy="largest",
        min_score=0.5,
        detector="finder",
        timing=True,
    )
    (received,) = peer.received
    assert received.method == "Analyze"
    assert received.metadata["mien-timing"] == "1"
    request = received.request
    assert request.image.encoded == photo.read_bytes()
    assert [(ref.name, ref.version) for ref in request.analysers] == [
        ("mood", 0),
        ("age", 2),
        ("live", 3),
    ]
    assert request.selection.policy == pb.FACE_POLICY_LARGEST
    assert request.detector.name == "finder"


def test_nothing_asked_is_nothing_sent(call: Call, peer: Peer, photo: Path) -> None:
    call("analyze", photo)
    request = peer.received[0].request
    assert (len(request.analysers), request.HasField("selection")) == (0, False)
    call("analyze", Image.new("RGB", (112, 112)), aligned=True)
    assert peer.received[1].request.image.WhichOneof("source") == "aligned_face"


def test_each_kind_of_answer_has_its_type(call: Call, photo: Path) -> None:
    result = call("analyze", photo)
    assert isinstance(result, mien.AnalyzeResult)
    (face,) = result.faces
    assert face.face.score == pytest.approx(0.97)
    assert face.quality.sharpness == pytest.approx(0.2)
    assert face.quality.yaw == -12.5
    assert face.quality.overall == 0.75
    assert face.quality.cut_off is None
    mood, live, age, corners = face.analyses
    assert isinstance(mood, mien.Classification)
    assert (mood.label, mood.probability) == ("happy", 0.75)
    assert mood.labels[1] == ("sad", 0.25)
    assert isinstance(live, mien.Score)
    assert live.value == pytest.approx(0.1)
    assert isinstance(age, mien.Number)
    assert (age.value, age.unit) == (41.5, "years")
    assert isinstance(corners, mien.Points)
    assert corners.points == (mien.Point(1.5, 2), mien.Point(3, 4))
    assert face["age"] is age
    with pytest.raises(
        KeyError, match="'gender' was not asked; the analysers that were: mood, live"
    ):
        face["gender"]
    assert result.detector is not None
    assert result.detector.name == "retinaface"


def test_an_answer_of_an_unknown_kind_is_told(call: Call, peer: Peer, photo: Path) -> None:
    unknown = pb.AnalyzedFace(analyses=[pb.Analysis(model=pb.ModelIdentity(name="later"))])
    peer.script.append(lambda request, context: pb.AnalyzeResponse(faces=[unknown]))
    with pytest.raises(mien.ServerError, match="later gave an answer of a kind"):
        call("analyze", photo)


def test_a_lone_name_is_no_list_of_analysers(call: Call, photo: Path) -> None:
    with pytest.raises(mien.InvalidRequest, match=r"must be several, as in \['age'\]"):
        call("analyze", photo, analysers="age")
    with pytest.raises(mien.InvalidRequest) as caught:
        call("analyze", photo, analysers=["age", 7])
    assert caught.value.field == "analysers[1]"


def test_the_command_prints_a_table(run: Run, photo: Path) -> None:
    status, printed, _ = run("analyze", photo)
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == f"{photo}  100 x 100 pixels, 1 face"
    assert lines[2].split()[-4:] == ["mood", "live", "age", "corners"]
    assert "happy 0.75" in lines[3]
    assert "41.5 years" in lines[3]
    assert lines[3].endswith("2 points")
    assert "analyser  age version 1 (fingerprint 00112233aabbccdd)" in lines


def test_the_command_prints_json(run: Run, peer: Peer, photo: Path) -> None:
    status, printed, _ = run(
        "analyze", photo, "--analyser", "mood", "--analyser", "age:2", "--json"
    )
    assert status == 0
    assert [ref.name for ref in peer.received[0].request.analysers] == ["mood", "age"]
    (face,) = json.loads(printed)
    assert face["box"] == [10.5, 20.25, 60, 90]
    assert face["quality"]["sharpness"] == 0.2
    mood, live, age, corners = face["analyses"]
    assert (mood["label"], mood["labels"]) == ("happy", {"happy": 0.75, "sad": 0.25})
    assert (live["kind"], live["value"]) == ("score", 0.1)
    assert (age["model"]["name"], age["value"], age["unit"]) == ("age", 41.5, "years")
    assert corners["points"] == [[1.5, 2], [3, 4]]


def test_the_command_draws_what_analysers_say(
    run: Run, peer: Peer, photo: Path, tmp_path: Path
) -> None:
    plain, told = tmp_path / "plain.png", tmp_path / "told.png"
    peer.script.append(
        lambda request, context: pb.AnalyzeResponse(
            faces=[pb.AnalyzedFace(face=full.face, quality=full.quality)]
        )
    )

    full = analyzed()
    for out in (plain, told):
        status, printed, _ = run("analyze", photo, "--out", out)
        assert (status, printed.splitlines()[-1]) == (0, f"picture   {out}")
    difference = ImageChops.difference(Image.open(plain), Image.open(told)).getbbox()
    assert difference is not None, "the four lines of the analysers"
    assert run("analyze", photo, "--out", tmp_path / "picture.doc")[0] == 2


def test_a_photo_without_a_face_has_an_empty_answer(run: Run, peer: Peer, photo: Path) -> None:
    peer.script.append(lambda request, context: pb.AnalyzeResponse(image_width=9, image_height=8))
    status, printed, _ = run("analyze", photo)
    assert (status, printed.strip()) == (0, f"{photo}  9 x 8 pixels, no face")


LIVE = mien.Requirement("live", at_least=0.8)
SAD = mien.Requirement(("mood", 2), "sad", at_most=0.25)


@pytest.mark.parametrize("method", ["analyze", "verify"])
def test_what_is_required_goes_into_the_request(
    call: Call, peer: Peer, photo: Path, method: str
) -> None:
    images = [photo] * (2 if method == "verify" else 1)
    call(method, *images, require=[LIVE, SAD], require_quality=True)
    call(method, *images)
    required, nothing = (received.request for received in peer.received)
    assert not nothing.HasField("require")
    assert required.require.quality
    assert not required.require.HasField("quality_at_least")
    live, sad = required.require.analysers
    assert (live.analyser.name, live.at_least, live.HasField("at_most")) == (
        "live",
        pytest.approx(0.8),
        False,
    )
    assert (sad.analyser.version, sad.label, sad.at_most) == (2, "sad", 0.25)
    with pytest.raises(mien.InvalidRequest, match=r"require takes mien\.Requirement, not 'live'"):
        call(method, *images, require=["live"])


@pytest.mark.parametrize("least", [0.0, 0.5, 1])
def test_quality_may_be_required_as_a_number(
    call: Call, peer: Peer, photo: Path, least: float
) -> None:
    call("analyze", photo, require_quality=least)
    required = peer.received[0].request.require
    assert (required.quality, required.quality_at_least) == (False, least)
    assert required.HasField("quality_at_least")
    with pytest.raises(mien.InvalidRequest, match="quality_at_least must be a number, not 'high'"):
        call("analyze", photo, require_quality="high")


def test_an_unmet_requirement_has_its_error(call: Call, peer: Peer, photo: Path) -> None:
    info = error_details_pb2.ErrorInfo(reason="REQUIREMENT_UNMET", domain="mien")
    peer.refuses(grpc.StatusCode.FAILED_PRECONDITION, "live says 0.1", info)
    with pytest.raises(mien.RequirementUnmet, match=r"live says 0\.1"):
        call("verify", photo, photo, require=[LIVE])


def test_the_command_requires(run: Run, peer: Peer, photo: Path) -> None:
    flags = ["--require", "live>=0.8", "--require", "mood:2/sad<=0.25", "--require-quality"]
    assert run("verify", photo, photo, *flags)[0] == 0
    assert run("analyze", photo, *flags)[0] == 0
    for received in list(peer.received):
        live, sad = received.request.require.analysers
        assert (live.analyser.name, live.at_least) == ("live", pytest.approx(0.8))
        assert (sad.analyser.name, sad.label, sad.at_most) == ("mood", "sad", 0.25)
        assert received.request.require.quality
    assert run("analyze", photo, "--quality-at-least", "0.5")[0] == 0
    assert peer.received[-1].request.require.quality_at_least == 0.5
    status, _, errors = run("analyze", photo, "--quality-at-least", "1.5")
    assert (status, "'1.5' is no number from 0 to 1" in errors) == (2, True)
    status, _, errors = run("verify", photo, photo, "--require", "live>0.8")
    assert status == 2
    assert "'live>0.8' is no requirement, such as" in errors


def test_embeddings_come_along_if_they_are_asked_for(call: Call, peer: Peer, photo: Path) -> None:
    full = analyzed()
    full.face.embedding.CopyFrom(pb.Embedding(values=VALUES, norm=9.5, model=IDENTITY))
    answer = pb.AnalyzeResponse(faces=[full], embedder=IDENTITY)
    peer.script.extend([lambda request, context: answer] * 2)
    result = call("analyze", photo, embed=True)
    call("analyze", photo, embedder="sface:2")
    call("analyze", photo)
    default, named, none = (received.request for received in peer.received)
    assert default.HasField("embedder")
    assert not default.embedder.name
    assert (named.embedder.name, named.embedder.version) == ("sface", 2)
    assert not none.HasField("embedder")
    assert result.embedder.name == "sface"
    assert result.faces[0].face.embedding.norm == 9.5
    assert "embedding" in result.as_dict()["faces"][0]


@pytest.mark.parametrize("method", ["detect", "embed", "verify"])
def test_other_calls_ask_analysers_too(call: Call, peer: Peer, photo: Path, method: str) -> None:
    face = pb.Face(score=0.9, analyses=analyzed().analyses)
    answers = {
        "detect": pb.DetectResponse(faces=[face], detector=IDENTITY),
        "embed": pb.EmbedResponse(faces=[face], embedder=IDENTITY),
        "verify": pb.VerifyResponse(face_a=face, embedder=IDENTITY),
    }
    peer.script.append(lambda request, context: answers[method])
    images = [photo] * (2 if method == "verify" else 1)
    result = call(method, *images, analysers=["mood", ("age", 2)])
    call(method, *images)
    asked, nothing = (received.request.analysers for received in peer.received)
    assert [(ref.name, ref.version) for ref in asked] == [("mood", 0), ("age", 2)]
    assert len(nothing) == 0
    found = result.face_a if method == "verify" else result.faces[0]
    assert (found["mood"].label, found["age"].value) == ("happy", 41.5)
    assert [each["kind"] for each in found.as_dict()["analyses"]] == [
        "classification",
        "score",
        "number",
        "points",
    ]
    with pytest.raises(KeyError, match="'gender' was not asked"):
        found["gender"]
    with pytest.raises(mien.InvalidRequest, match="must be several"):
        call(method, *images, analysers="age")
