"""docs/new-family.md from its first line to its last, as a reader follows it."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mien
from tests.conftest import ROOT
from tools.local_server import PROGRAM, local_server

PAGE = (ROOT / "docs" / "new-family.md").read_text()
FILES = dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
SERVE = COMMANDS.index("mien-server serve")
EXPORTED = "export MIEN_MODEL_REPOSITORY=models"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where pip installs into a folder of this test, out of what is there."""
    packages = tmp_path / "packages"
    return {k: v for k, v in os.environ.items() if not k.startswith("MIEN_")} | {
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{packages}:{os.environ.get('PYTHONPATH', '')}",
        "PIP_TARGET": str(packages),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip takes it for "no isolation"
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "MIEN_MODEL_REPOSITORY": EXPORTED.partition("=")[2],
    }


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_network_of_the_page_is_what_its_config_says() -> None:
    config = FILES["models/tiny/config.pbtxt"]
    entry = tomllib.loads(FILES["mien-tiny/pyproject.toml"])["project"]["entry-points"]
    module: dict[str, Any] = {}
    exec(FILES["mien-tiny/mien_tiny.py"], module)  # noqa: S102 - the page's own
    (family,) = module[entry["mien.families"]["tiny"].partition(":")[2]]
    output = family.network()(torch.zeros(2, 3, 112, 112))
    assert f"dims: [ {output.shape[1]} ]" in config
    assert f'"architecture", value: {{ string_value: "{family.name}" }}' in config


@pytest.mark.long  # each of its commands is a process of its own
def test_from_an_empty_module_to_an_answer(
    environment: dict[str, str],
    model_repository_path: Path,
    sample: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "here"
    for name in ("retinaface", "sface"):
        shutil.copytree(model_repository_path / name, folder / "models" / name)
    shutil.copy(sample("person_a_1"), folder / "photo.jpg")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert EXPORTED in COMMANDS
    for command in COMMANDS[:SERVE]:
        run(command, folder, environment)
    monkeypatch.chdir(folder)
    with local_server(tmp_path / "server.log", environment=environment) as server:
        environment["MIEN_ADDRESS"] = server.address
        for command in COMMANDS[SERVE + 1 :]:
            assert run(command, folder, environment)
        with mien.Client(server.address, timeout=60) as client:
            found = client.embed(folder / "photo.jpg", embedder="tiny").embedding
    assert found is not None
    assert (found.values.shape, found.model.name, found.model.version) == ((64,), "tiny", 2)
