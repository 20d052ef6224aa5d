"""docs/new-family.md: its files belong together. `tests/e2e/test_new_user.py` types its commands."""

import re
import tomllib
from typing import Any

import torch

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "new-family.md").read_text()
FILES = dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
SERVE = COMMANDS.index("mien-server serve")


def test_the_network_of_the_page_is_what_its_config_says() -> None:
    config = FILES["models/tiny/config.pbtxt"]
    entry = tomllib.loads(FILES["mien-tiny/pyproject.toml"])["project"]["entry-points"]
    module: dict[str, Any] = {}
    exec(FILES["mien-tiny/mien_tiny.py"], module)  # noqa: S102 - the page's own
    (family,) = module[entry["mien.families"]["tiny"].partition(":")[2]]
    output = family.network()(torch.zeros(2, 3, 112, 112))
    assert f"dims: [ {output.shape[1]} ]" in config
    assert f'"architecture", value: {{ string_value: "{family.name}" }}' in config
