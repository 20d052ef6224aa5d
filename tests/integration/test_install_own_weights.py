"""The script of docs/models.md turns a plain checkpoint into a version that loads."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from mien_server.backends.checkpoint import load_network
from mien_server.models.catalogue import FAMILIES
from mien_server.repository.manifest import verify_version

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_documented_script_makes_a_version_that_loads(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(# own_weights.*?)```", DOCS.read_text(), re.DOTALL)
    torch.manual_seed(0)
    network = FAMILIES["iresnet18"].network()
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    folder = tmp_path / "repository" / "arcface" / "1"
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "backbone.pth", folder], check=True, timeout=120
    )
    manifest = verify_version(folder, tmp_path / "repository", "model.safetensors")
    assert manifest.source == "backbone.pth"
    loaded = load_network(FAMILIES["iresnet18"], folder / "model.safetensors").state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(loaded[key], value), key
