"""What tests of the scheduler share: a device that only keeps account, and a model that only echoes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeDevice:
    """A device that notes the cores granted to each batch, and on which thread."""

    name: str = "cpu"
    executors: int = 1
    cores: int = 1
    ahead: int = 0
    grants: list[tuple[str, int]] = field(default_factory=list)

    def begin(self, cores: int) -> None:
        self.grants.append((threading.current_thread().name, cores))


class Echo:
    """Answers `("answer", row)`."""

    def collate(self, rows: Sequence[Any]) -> list[Any]:
        return list(rows)

    def compute(self, batch: list[Any]) -> list[Any]:
        return [("answer", row) for row in batch]

    def split(self, outputs: list[Any], rows: Sequence[Any]) -> list[Any]:
        assert len(outputs) == len(rows)
        return outputs
