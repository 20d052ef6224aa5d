"""The commands of `mien-server` as a shell uses them: interrupted, and with an output that takes nothing."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.local_server import PROGRAM

CLEAN_ENVIRONMENT = {key: value for key, value in os.environ.items() if key[:5] != "MIEN_"}


@pytest.fixture
def evaluation(model_repository_path: Path, portraits: list[Path], tmp_path: Path) -> list[str]:
    """`evaluate verification` of two pairs."""
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "person_a_1.jpg,person_a_2.jpg,1\nperson_a_1.jpg,impostor_1.jpg,0\n", encoding="utf-8"
    )
    paths = {"--pairs": pairs, "--images": portraits[0].parent}
    paths["--model-repository"] = model_repository_path
    return ["evaluate", "verification", *(str(word) for pair in paths.items() for word in pair)]


@pytest.fixture
def commands(
    evaluation: list[str], model_repository_path: Path, server_address: str, tmp_path: Path
) -> dict[str, list[str]]:
    """The commands that print what they have found, `check` after batches of one row."""
    shutil.copytree(model_repository_path / "retinaface", tmp_path / "models" / "retinaface")
    config = tmp_path / "models" / "retinaface" / "config.pbtxt"
    config.write_text(re.sub(r"(batch_size: )(\d+|\[ \d+ \])", r"\g<1>1", config.read_text()))
    return {
        "evaluate": evaluation,
        "check": [
            "models",
            "check",
            "retinaface",
            "--cpu-cores",
            "1",
            "--model-repository",
            str(tmp_path / "models"),
        ],
        "health": ["health", "--address", server_address],
    }


@pytest.fixture
def nobody_reads() -> Iterator[int]:
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.long) for name in ("evaluate", "check")), "health"],
)
def test_a_reader_that_goes_away_is_no_traceback(
    commands: dict[str, list[str]], nobody_reads: int, name: str
) -> None:
    done = subprocess.run(
        [PROGRAM, *commands[name]],
        stdout=nobody_reads,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        env=CLEAN_ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.long) for name in ("evaluate", "check")), "health"],
)
def test_an_output_that_cannot_be_written_is_said(
    commands: dict[str, list[str]], name: str
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, *commands[name]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            env=CLEAN_ENVIRONMENT,
        )
    said = "mien-server: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


# Ctrl-C comes when the first weights are opened to be checked, in the thread that loads them. A thread that
# is left in torch when the interpreter goes aborts the process, if it is there at the wrong moment.
INTERRUPTED = """
import os, signal, sys, threading
from mien_server.commands.main import main

def interrupt(event, args):
    global waiting
    if waiting and event == "open" and str(args[0]).endswith("model.safetensors"):
        waiting = False
        os.kill(os.getpid(), signal.SIGINT)

waiting = True
sys.addaudithook(interrupt)
status = main(sys.argv[1:])
print(*(thread.name for thread in threading.enumerate()))
sys.exit(status)
"""


def test_ctrl_c_while_an_evaluation_loads_its_models_ends_it_cleanly(
    evaluation: list[str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *evaluation],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=CLEAN_ENVIRONMENT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "MainThread\n", "")
