"""`models import` and `models pull` from the command line, and serving what they brought."""

import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mien
from mien_server.commands.main import main
from tests.unit.weights.public_networks import public_network
from tools.local_server import PROGRAM, local_server

Sample = Callable[[str], Path]


@pytest.fixture
def repository(model_repository_path: Path, tmp_path: Path) -> Path:
    """The real models, which this test may add to."""
    root = tmp_path / "repository"
    for model in ("retinaface", "sface", "arcface"):
        shutil.copytree(
            model_repository_path / model, root / model, ignore=shutil.ignore_patterns(".*")
        )
    # A smaller ArcFace than the one that is configured: what is imported is not the subject.
    config = root / "arcface" / "config.pbtxt"
    config.write_text(config.read_text().replace('"iresnet50"', '"iresnet18"'))
    return root


@pytest.fixture
def refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command that fails, in this process, and gives what it said."""
    for name in [name for name in os.environ if name.startswith("MIEN_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> str:
        assert main([*map(str, arguments), "--model-repository", str(repository)]) == 1
        return capsys.readouterr().err

    return run


@pytest.mark.long
def test_imported_arcface_serves_beside_sface(
    repository: Path, tmp_path: Path, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    network = public_network("iresnet18")
    torch.save(network.state_dict(), tmp_path / "backbone.pth")

    flags = ["--model-repository", str(repository)]
    assert main(["models", "import", "arcface", str(tmp_path / "backbone.pth"), *flags]) == 0

    said = capsys.readouterr()
    assert said.out == ""
    assert "'iresnet18' on backend 'pytorch', 187 tensors, 24,025,600 parameters" in said.err
    assert "arcface version 1 is imported" in said.err
    assert f"next: mien-server models check arcface --model-repository {repository}" in said.err
    with (
        local_server(tmp_path / "server.log", flags=flags) as server,
        mien.Client(server.address, timeout=120) as client,
    ):
        photo = sample("person_a_1")
        by_name = {name: client.embed(photo, embedder=name) for name in ("arcface", "sface")}
        assert {k: v.embedding.values.shape for k, v in by_name.items()} == {
            "arcface": (512,),
            "sface": (128,),
        }
        assert by_name["arcface"].embedding.model.version == 1
        alike = client.verify(photo, photo, embedder="arcface")
        assert alike.matched
        assert alike.similarity == pytest.approx(1, abs=1e-3)

        crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        served = client.embed(crop, embedder="arcface", aligned=True).embedding
        with torch.inference_mode():
            x = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
            expected = network((x - 127.5) / 127.5)[0].numpy()
        assert served.values @ expected / np.linalg.norm(expected) > 0.999


def test_refusal_is_one_message_and_a_status(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "backbone.pth").write_bytes(b"")
    said = refused("models", "import", "arcface", tmp_path / "backbone.pth")
    assert said.startswith("mien-server: backbone.pth is empty: ")
    assert len(said.splitlines()) == 1


def test_pull_asks_on_a_terminal_and_refuses_without_one(
    repository: Path, refused: Callable[..., str]
) -> None:
    pull = ["models", "pull", "https://127.0.0.1:1/a.pth", "arcface", "--sha256", "0" * 64]
    said = refused(*pull)
    assert "licence not stated at an address" in said
    assert "add --accept-license" in said

    leader, terminal = pty.openpty()
    os.write(leader, b"no\n")
    asked = subprocess.run(
        [PROGRAM, *pull, "--model-repository", str(repository)],
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(leader)
    os.close(terminal)
    assert asked.returncode == 1
    assert "Do you accept it? [y/N]" in asked.stdout
    assert "the licence was not accepted: nothing was downloaded" in asked.stderr

    assert "https://127.0.0.1:1/a.pth could not be reached" in refused(*pull, "--accept-license"), (
        "it went on to download"
    )
