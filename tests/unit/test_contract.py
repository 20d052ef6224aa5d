"""The contract in proto/: lint-clean, every part of it commented, and equal to the stubs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def test_checked_in_stubs_are_what_the_contract_generates(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    plugins = [
        f"--plugin=protoc-gen-{name}={BIN}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")
    ]
    outputs = [
        f"--{name}_out={tmp_path}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")
    ]
    program = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}/proto"]
    subprocess.run([*program, *plugins, *outputs, *map(str, protos)], check=True, timeout=60)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))

    assert len(generated) == 4 * len(protos)
    for path in generated:
        assert (tmp_path / path).read_text() == (ROOT / "client" / path).read_text(), path


def test_buf_finds_the_contract_lint_clean_and_commented_throughout() -> None:
    done = subprocess.run(
        [BIN / "buf", "lint", ROOT / "proto"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
