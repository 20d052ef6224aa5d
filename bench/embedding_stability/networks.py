"""The detector and the embedder, in float32."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance

ROOT = Path(__file__).parents[2]


class Model:
    """A model of the repository, in float32 on the processor. A detector reports all candidates."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / "model_repository" / name
        config = read_config(self.folder / "config.pbtxt")
        assert isinstance(config, ModelConfig)
        self.config = config
        self.device = CpuDevice()
        options = config.options
        if hasattr(options, "nms_threshold"):
            options = dataclasses.replace(options, nms_threshold=1.0)
        self.instance = load_instance(
            dataclasses.replace(config, options=options),
            self.folder / "1",
            self.device,
            precision="fp32",
        )

    def answer(self, rows: Sequence[Any]) -> list[Any]:
        """One result for each row."""
        return answers(self.instance, self.device, rows)


def answers(instance: LoadedInstance, device: CpuDevice, rows: Sequence[Any]) -> list[Any]:
    """One result for each row, on one core."""
    device.begin(1)
    return instance.split(instance.compute(instance.collate(rows)), rows)
