"""What other calls than Analyze ask of analysers and of quality, over the wire by both clients."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import mien
from mien import cli
from tests.conftest import LaunchServer
from tests.integration.test_analyser import CONFIG, add_version, means
from tools.local_server import LocalServer

Sample = Callable[[str], Path]
_NAMES = count(1)


@pytest.fixture(scope="module")
def analysing(
    launch_server: LaunchServer,
    model_repository_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalServer]:
    """A server with galleries and an analyser that tells which colour an aligned face has most of."""
    folder = tmp_path_factory.mktemp("analysing")
    repository = folder / "models"
    shutil.copytree(model_repository_path, repository)
    add_version(repository, 1, means())
    (repository / "colours" / "config.pbtxt").write_text(CONFIG)
    with launch_server("--gallery-dir", str(folder / "galleries"), repository=repository) as each:
        yield each


@pytest.fixture(scope="module")
def client(analysing: LocalServer) -> Iterator[mien.Client]:
    with mien.Client(analysing.address, timeout=60) as client:
        yield client


@pytest.fixture
def gallery(client: mien.Client) -> mien.Gallery:
    """An empty gallery."""
    made = client.gallery(f"gallery-{next(_NAMES)}")
    made.create()
    return made


@pytest.fixture
def blurred(sample: Sample) -> NDArray[np.uint8]:
    """A portrait out of focus."""
    photo = np.ascontiguousarray(np.asarray(cv2.imread(str(sample("person_b_2"))))[..., ::-1])
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), 10), np.uint8)


RED = mien.Requirement("colours", "red", at_least=0.34)
BLUE = mien.Requirement("colours", "blue", at_least=0.34)


def test_enrol_takes_all_faces_that_fulfil_what_is_required_or_none(
    gallery: mien.Gallery, sample: Sample, blurred: NDArray[np.uint8]
) -> None:
    ann = mien.NewFace(sample("person_a_1"), "ann", request_key="first")
    bad = mien.NewFace(blurred, "bob")
    with pytest.raises(mien.RequirementUnmet, match=r"it is blurred \(0\.\d+, 0\.08 or") as caught:
        gallery.enrol_faces([ann, bad], quality_policy="warn", require_quality=True)
    assert caught.value.field == "faces[1].subject.image"
    assert gallery.info().faces == 0
    with pytest.raises(mien.RequirementUnmet, match=r"colours says blue 0\.\d+, 0\.34 or more"):
        gallery.enrol(sample("person_a_1"), "ann", require=[BLUE])
    assert gallery.info().faces == 0
    (result,) = gallery.enrol_faces([ann], require=[RED], require_quality=True)
    assert result.outcome == "enrolled"
    # What is enrolled already is not looked at again.
    assert gallery.enrol_faces([ann], require=[BLUE])[0].outcome == "existing"
    assert gallery.identify(sample("person_a_2")).persons[0].person == "ann"


def test_many_faces_are_enrolled_but_for_those_that_do_not_fulfil_it(
    analysing: LocalServer, gallery: mien.Gallery, sample: Sample, blurred: NDArray[np.uint8]
) -> None:
    faces = [mien.NewFace(sample("person_a_1"), "ann"), mien.NewFace(blurred, "bob")]
    how: dict[str, Any] = {"quality_policy": "accept", "require_quality": True, "require": [RED]}

    async def enrol() -> list[mien.Outcome[mien.NewFace, mien.EnrolResult]]:
        async with mien.AsyncClient(analysing.address, timeout=60) as client:
            return [each async for each in client.gallery(gallery.name).enrol_many(faces, **how)]

    for outcomes in (list(gallery.enrol_many(faces, **how)), asyncio.run(enrol())):
        fine, unmet = outcomes
        assert fine.get().person == "ann"
        assert isinstance(unmet.error, mien.RequirementUnmet)
    assert gallery.info().faces == 1


def test_a_folder_is_enrolled_but_for_photos_that_do_not_fulfil_it(
    gallery: mien.Gallery,
    analysing: LocalServer,
    sample: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for who in ("person_a", "person_b"):
        (tmp_path / who).mkdir()
        shutil.copy(sample(f"{who}_1"), tmp_path / who)
    command = ["gallery", "add", gallery.name, str(tmp_path), "--json"]
    command += ["--address", analysing.address, "--require"]
    assert cli.main([*command, "colours/blue>=0.34"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [each["reason"] for each in told["refused"]] == ["REQUIREMENT_UNMET"] * 2
    assert cli.main([*command, "colours/red>=0.34", "--require-quality"]) == 0
    assert json.loads(capsys.readouterr().out)["enrolled"] == 2


def test_one_call_finds_embeds_and_tells(client: mien.Client, sample: Sample) -> None:
    photo = sample("person_a_1")
    (analysed,) = client.analyze(photo, analysers=["colours"], embed=True).faces
    colours = analysed["colours"]
    detected, plain = client.detect(photo, analysers=["colours"]), client.detect(photo)
    assert detected.faces[0]["colours"] == colours
    assert plain.faces[0].analyses == ()
    assert detected.faces[0].box == plain.faces[0].box
    embedded = client.embed(photo, analysers=["colours"], timing=True)
    assert embedded.faces[0]["colours"] == colours
    assert embedded.embedding == client.embed(photo).embedding
    stages = [stage.name for stage in embedded.timing]
    assert (stages.count("decode"), stages.count("detect.compute")) == (1, 1)
    verified = client.verify(photo, embedded.embedding, analysers=["colours"])
    assert (verified.face_a["colours"], verified.face_b.analyses) == (colours, ())
    (outcome,) = client.embed_many([photo], analysers=["colours"])
    assert outcome.get().faces[0]["colours"] == colours


async def test_the_asynchronous_client_asks_and_enrols_with_analysers(
    analysing: LocalServer, gallery: mien.Gallery, sample: Sample
) -> None:
    async with mien.AsyncClient(analysing.address, timeout=60) as client:
        found = await client.embed(sample("person_a_1"), analysers=["colours"])
        result = await client.gallery(gallery.name).enrol(
            sample("person_a_1"), "ann", analysers=["colours"], require=[RED]
        )
    assert result.face is not None
    assert result.face["colours"] == found.faces[0]["colours"]
    assert result.as_dict()["face"]["analyses"][0]["label"] == "red"
    with pytest.raises(mien.ModelNotFound) as caught:
        gallery.enrol(sample("person_a_1"), "ann", analysers=["nobody"])
    assert caught.value.field == "analysers[0]"


def test_one_number_of_quality_is_told_and_may_be_required(
    client: mien.Client, gallery: mien.Gallery, sample: Sample, blurred: NDArray[np.uint8]
) -> None:
    portrait, bad = (
        client.analyze(photo).faces[0].quality for photo in (sample("person_b_2"), blurred)
    )
    assert portrait.overall == 1
    assert bad.overall is not None
    assert bad.overall < 0.5
    client.verify(sample("person_a_1"), sample("person_a_2"), require_quality=0.9)
    for ask in (
        lambda: client.analyze(blurred, require_quality=0.9),
        lambda: client.verify(sample("person_b_1"), blurred, require_quality=0.9),
        lambda: gallery.enrol(blurred, "bob", quality_policy="accept", require_quality=0.9),
    ):
        with pytest.raises(mien.RequirementUnmet, match=r"its quality is 0\.\d+, 0\.9 or more"):
            ask()
    enrolled = gallery.enrol(sample("person_b_2"), "bob", require_quality=0.9)
    assert enrolled.quality is not None
    assert enrolled.quality.overall == 1
    assert [face.quality.overall for face in gallery.faces() if face.quality] == [1]
