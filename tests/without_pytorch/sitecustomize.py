"""Python imports this at its start if the folder is on PYTHONPATH: PyTorch is then not there."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _WithoutPyTorch(PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "torch":
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path = [_WithoutPyTorch if each is PathFinder else each for each in sys.meta_path]
