"""The upgrade of docs/repository.md, step by step as the page has it, on a server that loads on request."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import mien
from mien_server.repository.config.editing import replace_text, with_field, with_parameter
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.config.traffic import TRAFFIC_PARAMETERS
from tests.conftest import ROOT, LaunchServer
from tests.integration.repository_rig import copy_repository, lighten
from tools.local_server import PROGRAM

UPGRADE = (
    (ROOT / "docs" / "repository.md").read_text().split("\n## An upgrade\n")[1].split("\n## ")[0]
)
COMMANDS = re.findall(r"^\$ (.+)$", UPGRADE, re.MULTILINE)
STEPS = re.findall(r"^\| ([^|`]+) \| ((?:no candidate|`).*) \|$", UPGRADE, re.MULTILINE)[1:]
"""Of the table, without its head: what is done, and what config.pbtxt says for it."""


@pytest.fixture
def repository(model_repository_path: Path, tmp_path: Path) -> Path:
    return lighten(copy_repository(model_repository_path, tmp_path / "model_repository"))


def shell(command: str, folder: Path, address: str) -> str:
    """What a command prints, run where a reader of the page would run it."""
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("MIEN_")}
        | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "MIEN_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def set_as_told(config: Path, told: str) -> None:
    """Writes into a config.pbtxt what a step of the table says: no candidates but those that it names."""
    text = ConfigText.read(config)
    lines = [
        line for line in text.source.splitlines() if not any(k in line for k in TRAFFIC_PARAMETERS)
    ]
    text = ConfigText(config, "\n".join(lines))
    for code in re.findall(r"`([^`]+)`", told):
        key, _, value = code.partition(": ")
        if key in TRAFFIC_PARAMETERS:
            text = with_parameter(text, key, value)
        else:
            text = with_field(text, ("version_policy",), f"{{ {code} }}")
    replace_text(config, text.source)


def test_the_page_has_what_is_walked_here() -> None:
    assert [command.split()[1:3] for command in COMMANDS] == [
        ["models", "import"],
        ["models", "check"],
    ]
    assert len(STEPS) == 4


@pytest.mark.long  # each of its commands is a process of its own
def test_the_upgrade(
    launch_server: LaunchServer, repository: Path, tmp_path: Path, sample: Callable[[str], Path]
) -> None:
    tuned = load_file(repository / "sface" / "1" / "model.safetensors")
    tuned["fc.bias"] += 1e-3
    save_file(tuned, tmp_path / "tuned.safetensors")
    flags = ("--model-control-mode", "explicit", "--load-model", "*")
    with (
        launch_server(*flags, repository=repository) as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        photo = sample("person_a_1")

        def answers() -> int:
            found = client.embed(photo).embedding
            assert found is not None
            return found.model.version

        for command in COMMANDS:
            shell(command, tmp_path, server.address)
        assert answers() == 1, "nothing changes until the model is loaded"

        seen = {}
        for step, told in STEPS:
            set_as_told(repository / "sface" / "config.pbtxt", told)
            shell("mien models load sface", tmp_path, server.address)
            index = json.loads(shell("mien models ls --json", tmp_path, server.address))
            ready = [e["version"] for e in index if (e["name"], e["state"]) == ("sface", "READY")]
            seen[step] = sorted(map(int, ready)), answers()
    assert seen["try it"] == ([1, 2], 1)
    assert seen["let it answer 5 %"][0] == [1, 2]
    assert seen["let it answer all, the old one at hand"] == ([1, 2], 2)
    assert seen["free the old one"] == ([2], 2)
