"""Runs the build stage of the Dockerfile in a fresh folder, without a container engine.

The first stage's ARG, ENV, WORKDIR, COPY and RUN are followed as they stand, with its absolute
paths moved under a temporary folder and --mount options dropped. What needs an engine (base image,
user, the second stage) is not shown. At the end the server starts from the environment that the
stage built and answers `mien-server health`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template

from tools.local_server import local_server

ROOT = Path(__file__).resolve().parent.parent
STAGE_PATHS = re.compile(r"(?<![\w./])/(opt/mien|src|models)\b")


def main() -> None:
    """Follows the first stage, then starts what it built."""
    with tempfile.TemporaryDirectory(prefix="docker-steps-") as folder:
        target = Path(folder)
        environment = run_stage(first_stage((ROOT / "Dockerfile").read_text()), target)
        serve(target, environment)
    print("docker-steps: the build stage's steps all ran, and the server they built is healthy")


def first_stage(text: str) -> list[tuple[str, str]]:
    """The instructions of the first stage, continuation lines joined, as (name, arguments)."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stage: list[tuple[str, str]] = []
    stages = 0
    for line in filter(None, joined.splitlines()):
        name, _, arguments = line.partition(" ")
        stages += name == "FROM"
        if stages == 1 and name != "FROM":
            stage.append((name, arguments.strip()))
    return stage


def run_stage(stage: list[tuple[str, str]], target: Path) -> dict[str, str]:
    """Runs the instructions under `target`; returns the environment they leave."""
    # The base image's interpreter is the first on the path; here it is the one that runs this.
    environment = os.environ | {"PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}"}
    directory = target
    for name, arguments in stage:
        moved = STAGE_PATHS.sub(rf"{target}/\1", arguments)
        print(f"docker-steps: {name} {moved}", flush=True)
        match name:
            case "ARG" | "ENV":
                for pair in shlex.split(Template(moved).safe_substitute(environment)):
                    key, _, value = pair.partition("=")
                    environment[key] = os.environ.get(key, value) if name == "ARG" else value
            case "WORKDIR":
                directory = Path(moved)
                directory.mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, destination = shlex.split(moved)
                for source in sources:
                    copy(ROOT / source, directory / destination)
            case "RUN":
                command = re.sub(r"--mount=\S+\s*", "", moved)
                subprocess.run(["sh", "-ec", command], cwd=directory, env=environment, check=True)
            case _:
                sys.exit(
                    f"docker-steps: does not know {name}; teach it, or keep it out of the stage"
                )
    return environment


def copy(source: Path, destination: Path) -> None:
    """COPY of one source: a folder's contents or a file, without what .dockerignore hides."""
    if source.is_dir():
        hidden = shutil.ignore_patterns("__pycache__", "[0-9]*", ".*")
        shutil.copytree(source, destination, dirs_exist_ok=True, ignore=hidden)
    else:
        destination.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)


def serve(target: Path, environment: dict[str, str]) -> None:
    """Starts the built server, asks the image's health check, stops the server by SIGTERM."""
    program = target / "opt" / "mien" / "bin" / "mien-server"
    flags = ["--model-repository", f"{target}/models"]
    with local_server(
        target / "server.log", flags=flags, program=program, environment=environment
    ) as server:
        port = server.address.rpartition(":")[2]
        health = environment | {"MIEN_GRPC_PORT": port}
        subprocess.run([program, "health"], cwd=target, env=health, check=True)


if __name__ == "__main__":
    main()
