"""MiniFASNet's two networks and the parts of FairFace's, imported with random weights and served."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import mien
from mien_server.weights.importer import import_weights
from mien_server.weights.install import install
from mien_server.weights.progress import Progress
from tests.integration.repository_rig import copy_repository
from tests.unit.weights import test_import_fairface, test_import_minifasnet
from tools.local_server import local_server

pytestmark = pytest.mark.long

Sample = Callable[[str], Path]
LINE = '  # { key: "average_with"'


@pytest.fixture(scope="module")
def client(
    model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[mien.Client]:
    """Of a server with all of them."""
    folder = tmp_path_factory.mktemp("imported")
    root = copy_repository(model_repository_path, folder / "models")
    quiet = Progress(io.StringIO())
    for name, variant in (("minifasnet_v2", "V2"), ("minifasnet_v1se", "V1SE")):
        install(root, [name], quiet)
        network = test_import_minifasnet.network(variant)
        path = test_import_minifasnet.saved(network, folder / f"{variant}.pth")
        import_weights(root, name, path, quiet)
    shutil.copytree(root / "minifasnet_v2", root / "alone")
    for name in ("alone", "minifasnet_v2"):
        config = root / name / "config.pbtxt"
        text = config.read_text().replace('name: "minifasnet_v2"', f'name: "{name}"')
        assert LINE in text, "as docs/models.md has it"
        config.write_text(text if name == "alone" else text.replace(LINE, LINE.replace("# ", "")))
    torch.save(test_import_fairface.network().state_dict(), folder / "fair.pt")
    for part in ("age", "gender"):
        import_weights(root, f"fairface_{part}", folder / "fair.pt", quiet, part=part)
    flags = ["--model-repository", str(root)]
    with (
        local_server(folder / "server.log", flags=flags) as server,
        mien.Client(server.address, timeout=120) as client,
    ):
        yield client


def test_minifasnets_are_averaged_as_their_authors_do(client: mien.Client, sample: Sample) -> None:
    asked = ["minifasnet_v2", "alone", "minifasnet_v1se"]
    (face,) = client.analyze(sample("person_a_1"), analysers=asked).faces
    scores = [each.value for each in face.analyses if isinstance(each, mien.Score)]
    both, first, second = scores
    assert abs(first - second) > 0.01, "random weights say something else"
    assert both == pytest.approx((first + second) / 2, abs=1e-5)
    strict = mien.Requirement("minifasnet_v2", at_least=max(first, second))
    with pytest.raises(mien.RequirementUnmet, match=f"minifasnet_v2 says {both:.3f}"):
        client.verify(sample("person_a_1"), sample("person_a_1"), require=[strict])


def test_the_parts_of_fairface_are_served_side_by_side(client: mien.Client, sample: Sample) -> None:
    names = ["fairface_age", "fairface_gender"]
    (face,) = client.analyze(sample("person_b_1"), analysers=names).faces
    for name, count in zip(names, (9, 2), strict=True):
        told = face[name]
        assert isinstance(told, mien.Classification)
        assert len(told.labels) == count
        assert sum(each.probability for each in told.labels) == pytest.approx(1, abs=1e-4)
