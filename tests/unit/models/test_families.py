"""The names that `architecture` may have."""

import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from mien_server.models.families import UnknownArchitecture, families, find_family
from mien_server.models.roles import EmbedderOptions, EmbedderRow


def test_every_family_is_found_by_its_name() -> None:
    assert {name: find_family(name).role.name for name in families()} == {
        "retinaface_mobilenet0.25": "detect",
        "retinaface_resnet50": "detect",
        "iresnet18": "embed",
        "iresnet34": "embed",
        "iresnet50": "embed",
        "iresnet100": "embed",
        "sface": "embed",
        "embedder": "embed",
        "scrfd": "detect",
        "yunet": "detect",
        "ulfd": "detect",
        "mtcnn": "detect",
        "analyser": "analyse",
    }


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture, match=r"'resnet'.*iresnet50.*sface"):
        find_family("resnet")


def test_networks_come_in_eval_mode() -> None:
    network: nn.Module = find_family("sface").network()
    assert not any(module.training for module in network.modules())


def test_an_embedders_results_are_the_rows_of_its_output() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    crop = EmbedderRow(np.zeros((112, 112, 3), np.uint8))

    results = find_family("sface").results([vectors], [crop, crop], EmbedderOptions())

    np.testing.assert_array_equal(results, vectors)


def test_only_networks_need_torch() -> None:
    code = (
        "import pkgutil, sys; from importlib import import_module; import mien_server.models as models\n"
        "for module in pkgutil.iter_modules(models.__path__, 'mien_server.models.'):\n"
        "    import_module(module.name)\n"
        "from mien_server.models.families import families, roles\n"
        "assert len(families()) > 9 and set(roles()) == {'detect', 'embed', 'analyse'}\n"
        "print(sorted(name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
