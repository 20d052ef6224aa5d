"""Where new users once stumbled, walked again as they would: from the wheel, in an empty environment.

Each test is one place, and its commands are those that a user types. What they print varies; only what a user
looks for in it is checked. What needs no server of its own shares one.
"""

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import TensorProto, load

from tests.conftest import ROOT
from tests.e2e.new_user import User
from tests.integration import test_new_family_docs as new_family
from tests.unit.weights.onnx_files import one_layer

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PAGE = (ROOT / "docs" / "sdk.md").read_text()
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PORTRAITS = sorted(path for path in (ROOT / "samples").glob("*.jpg"))
LENT = "pytorch"


@pytest.fixture(scope="module")
def here(user: User) -> User:
    """A folder with photos and the default models."""
    here = user.elsewhere(user.folder / "places", MIEN_MODEL_REPOSITORY="models")
    for portrait in PORTRAITS:
        shutil.copy(portrait, here.folder)
    here.types("mien-server models install")
    return here


@pytest.fixture(scope="module")
def served(here: User) -> Iterator[User]:
    """The same with a server, which others leave as it is."""
    with here.keeps_running("mien-server serve --log-format json"):
        yield here


@pytest.fixture
def alone(here: User, tmp_path: Path) -> User:
    """The same in a folder that may be changed, with a port that nobody listens at."""
    alone = here.elsewhere(tmp_path / "alone")
    for portrait in PORTRAITS:
        shutil.copy(portrait, alone.folder)
    shutil.copytree(here.folder / "models", alone.folder / "models")
    return alone


@pytest.fixture
def scholar(alone: User, user: User) -> User:
    """Who trains, and has PyTorch."""
    return alone.with_pytorch(user.folder / LENT)


def listed(user: User) -> dict[tuple[str, int], dict[str, object]]:
    """Versions of the repository, as `models ls` has them."""
    found = json.loads(user.types("mien-server models ls --json"))["models"]
    return {(each["model"], each["version"]): each for each in found if each.get("version")}


def test_a_second_version_of_a_shipped_model_and_its_own_threshold(
    alone: User, scholar: User
) -> None:
    pairs = [
        f"{a.name},{b.name},{'Yes' if a.stem[:-1] == b.stem[:-1] else 'No'}\n"
        for a, b in itertools.combinations(PORTRAITS, 2)
    ]
    (alone.folder / "ours.csv").write_text("".join(3 * pairs))
    alone.types(
        "mien-server evaluate verification --pairs ours.csv --calibrate 0.1 --embedder sface:1"
    )
    measured = json.loads((alone.folder / "models/sface/1/thresholds.json").read_text())
    assert (measured["data"], measured["version"]) == ("ours.csv", 1)
    assert measured["created"]

    tuned = "mien-server models import sface models/sface/1/model.safetensors"
    assert "pip install 'mien[torch]'" in alone.types(tuned, fails=True)
    assert "sface version 2 is imported" in scholar.types(tuned)
    assert "passed" in alone.types("mien-server models check sface --version 2")
    assert "mtcnn version 1" in scholar.types("mien-server models install mtcnn")
    scholar.types("mien-server models import mtcnn models/mtcnn/1/model.safetensors")
    of_both = [listed(alone)["sface", version]["match_threshold"] for version in (1, 2)]
    assert of_both == [pytest.approx(measured["match_threshold"], abs=1e-3), pytest.approx(0.363)]

    (alone.folder / "photos").mkdir()
    for number, portrait in enumerate(2 * PORTRAITS):
        shutil.copy(portrait, alone.folder / "photos" / f"{number}.jpg")
    told = scholar.types("mien-server models quantize sface --version 1 --calibration photos")
    assert "no threshold was measured with it" in told
    assert listed(alone)["sface-int8", 1]["match_threshold"] is None


def test_a_folder_filled_by_hand_and_a_network_of_ones_own(alone: User) -> None:
    one_layer(alone.folder / "ours.onnx", ["n", 3, 112, 112], 64)
    alone.types("mien-server models import ours ours.onnx --license 'ours alone'")
    alone.types("mkdir models/ours/2 && cp ours.onnx models/ours/2/model.onnx")
    assert ("ours", 2) not in {key for key, each in listed(alone).items() if not each["reason"]}
    alone.types("mien-server models seal ours --version 2 --license 'ours alone'")
    assert "passed" in alone.types("mien-server models check ours --version 2")


def test_a_family_in_a_package_of_ones_own(scholar: User) -> None:
    folder = scholar.folder
    shutil.copy(PORTRAITS[0], folder / "photo.jpg")
    for name, text in new_family.FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    try:
        for command in new_family.COMMANDS[: new_family.SERVE]:
            scholar.types(command)
        with scholar.keeps_running(new_family.COMMANDS[new_family.SERVE]):
            for command in new_family.COMMANDS[new_family.SERVE + 1 :]:
                assert scholar.types(command)
            told = json.loads(scholar.types("mien embed photo.jpg --embedder tiny --json"))
        assert (len(told["embedding"]), told["model"]["version"]) == (64, 2)
    finally:
        scholar.types("pip uninstall --yes mien-tiny")


@pytest.mark.parametrize("named", ["'*'", "sface"])
def test_a_broken_model_ends_the_start_whether_it_is_named_or_not(alone: User, named: str) -> None:
    weights = alone.folder / "models" / "sface" / "1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "bytes" in str(listed(alone)["sface", 1]["reason"])
    serve = f"mien-server serve --model-control-mode explicit --load-model {named}"
    told = alone.types(serve, fails=True)
    assert "sface" in told
    assert "Traceback" not in told


def test_import_makes_a_repository_and_takes_what_is_said_of_the_input(alone: User) -> None:
    one_layer(alone.folder / "ours.onnx", ["n", 3, 112, 112], 64)
    one_layer(alone.folder / "large.onnx", ["n", 3, 160, 160], 64)
    new = replace(alone, environment={**alone.environment, "MIEN_MODEL_REPOSITORY": "new/models"})
    imagenet = "--channel-order BGR --mean 123.675,116.28,103.53 --scale 1/58.395,1/57.12,1/57.375"
    new.types(f"mien-server models import ours ours.onnx {imagenet}")
    assert listed(new)["ours", 1]["license"] == "not stated"
    assert "--window" in new.types("mien-server models import large large.onnx", fails=True)

    # One that sees 160 pixels serves beside the default one, photos and crops.
    alone.types("mien-server models import large large.onnx --window 0,0,112")
    with alone.keeps_running("mien-server serve"):
        photo = alone.types("mien embed person_a_1.jpg --embedder large --json")
        alone.types("mien crop person_a_1.jpg --out crops")
        (crop,) = (alone.folder / "crops").iterdir()
        alike = alone.types(
            "mien verify person_a_1.jpg person_a_2.jpg --embedder large --threshold 0.5 --json"
        )
        aligned = f"mien embed {crop} --aligned --embedder large --json"
        made = [json.loads(each) for each in (photo, alone.types(aligned))]
        assert "160" in alone.types("mien models show large")
    assert json.loads(alike)["model"]["name"] == "large"
    assert made[0]["model"] == made[1]["model"]
    similarity = sum(a * b for a, b in zip(*(each["embedding"] for each in made), strict=True))
    assert similarity > 0.95

    model = load(alone.folder / "ours.onnx")
    (weights,) = model.graph.initializer
    weights.ClearField("raw_data")
    weights.external_data.add(key="location", value="ours.data")
    weights.data_location = TensorProto.EXTERNAL
    (alone.folder / "outside.onnx").write_bytes(model.SerializeToString())
    told = alone.types("mien-server models import outside outside.onnx", fails=True)
    assert "external_data=False" in told


def test_photos_become_aligned_crops(served: User) -> None:
    assert served.types("mien crop *.jpg --out crops")
    assert len(list((served.folder / "crops").iterdir())) == len(PORTRAITS)


def test_addresses_and_tls(served: User, alone: User) -> None:
    told = served.runs(
        "import mien\n"
        "for address in ('localhost', '::1', '[::1]:9000'):\n"
        "    print(mien.Client(address).address)\n"
    )
    assert told.split() == ["localhost:8001", "[::1]:8001", "[::1]:9000"]
    mixed_up = served.types("mien detect person_a_1.jpg --tls", fails=True)
    assert "does not speak TLS" in mixed_up
    assert "tart one" not in mixed_up
    assert len(mixed_up.splitlines()) == 1, "nothing of gRPC's own"
    nobody = alone.types("mien detect person_a_1.jpg", fails=True)
    assert len(nobody.splitlines()) == 1

    key = "-newkey rsa:2048 -nodes -keyout server.key -out server.pem -days 2 -subj /CN=localhost"
    alone.types(f"openssl req -x509 {key} -addext subjectAltName=DNS:localhost && chmod 600 *.key")
    with alone.keeps_running("mien-server serve --tls-cert server.pem --tls-key server.key"):
        told = alone.types("mien detect person_a_1.jpg", fails=True)
        assert "speaks TLS" in told
        assert len(told.splitlines()) == 1
        assert "1 face" in alone.types("mien detect person_a_1.jpg --tls-ca server.pem")


def test_embeddings_and_faces_as_values(served: User) -> None:
    told = served.runs(
        "import json\n"
        "import mien\n"
        "with mien.Client() as client:\n"
        "    assert client.ready()\n"
        "    client.wait_ready(timeout=10)\n"
        "    assert {m.name for m in client.models() if m.state == 'READY'} >= {'sface'}\n"
        "    a = client.embed('person_a_1.jpg').embedding\n"
        "    again = mien.Embedding.from_dict(json.loads(json.dumps(a.as_dict())))\n"
        "    assert again == a and hash(again) == hash(a) and len({a, again}) == 1\n"
        "    b = client.embed('person_a_2.jpg').embedding\n"
        "    result = client.verify(a, b)\n"
        "    assert abs(a.similarity(b) - result.similarity) < 1e-6\n"
        "    for each in (a, result, client.detect('person_a_1.jpg')):\n"
        "        assert len(repr(each)) < 600, repr(each)\n"
        "    (face,) = client.detect('person_a_1.jpg').faces\n"
        "    assert face.crop('person_a_1.jpg').size[0] > 50\n"
        "    print(result.threshold)\n"
        "limits = mien.Limits(max_calls=4, max_connections=2)\n"
        "with mien.Client(limits=limits, overload_retries=3) as client:\n"
        "    assert client.detect('person_a_1.jpg').faces\n"
        "for name in ('detect', 'embed', 'verify', 'analyze', 'ready', 'wait_ready', 'models'):\n"
        "    assert len(getattr(mien.AsyncClient, name).__doc__) > 200, name\n"
    )
    assert told.split() == ["0.363"]


def test_the_command(served: User) -> None:
    assert "person_b_2.jpg" in served.types("mien detect *.jpg --out drawn")
    assert len(list((served.folder / "drawn").iterdir())) == len(PORTRAITS)
    served.types("mien embed person_a_1.jpg --json > a.json")
    assert "same" in served.types("mien verify a.json person_a_2.jpg")
    assert "same" in served.types("mien verify person_a_2.jpg a.json")
    findings = served.types("mien doctor")
    for looked_at in ("address", "tls", "round trip", "server", "ready", "clock", "compute"):
        assert looked_at in findings, findings


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_the_examples_of_the_page(served: User, language: str, code: str, tmp_path: Path) -> None:
    someone = replace(served, folder=tmp_path)
    for portrait in PORTRAITS:
        shutil.copy(portrait, tmp_path)
    if language == "python":
        assert someone.runs(code)
    else:
        assert someone.types(f"set -eu\n{code}")


def test_what_an_operator_is_told(alone: User) -> None:
    shipped = {path.parent.name for path in (ROOT / "model_repository").glob("*/config.pbtxt")}
    there = {path.parent.name for path in (alone.folder / "models").glob("*/config.pbtxt")}
    assert "face_embedding" in there
    carried = alone.runs(
        "from pathlib import Path\n"
        "import mien_server\n"
        "for path in Path(mien_server.__file__).parent.rglob('config.pbtxt'):\n"
        "    print(path.parent.name)\n"
    )
    assert set(carried.split()) == shipped
    told = alone.types("MIEN_GRPC_PROT=9000 mien-server serve", fails=True)
    assert "MIEN_GRPC_PROT" in told
    assert "MIEN_GRPC_PORT" in told
    assert "--insecure" in alone.types("mien-server serve --grpc-address 0.0.0.0", fails=True)
    insecure = "mien-server serve --grpc-address 0.0.0.0 --insecure --log-format json"
    with alone.keeps_running(insecure):
        alone.types("mien embed person_a_1.jpg")
    log = [json.loads(line) for line in (alone.folder / "server.log").read_text().splitlines()]
    assert [each for each in log if each["level"] == "warning" and "--insecure" in str(each)]
    loaded = {(each["model"], each["version"]) for each in log if "version" in each}
    assert loaded == {("retinaface", 1), ("sface", 1)}
    (call,) = [each for each in log if str(each.get("method")).endswith("/Embed")]
    assert call["models"] == "retinaface:1,sface:1"
    assert [each["mib"] for each in log if each["message"] == "memory at worst"]


def test_the_commands_of_upgrading(alone: User) -> None:
    page = (ROOT / "docs" / "upgrading.md").read_text()
    lines = re.findall(r"^/opt/mien-new/bin/(mien-server .*)$", page, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert alone.types(line.replace("/srv/models", shlex.quote(str(alone.folder / "models"))))
