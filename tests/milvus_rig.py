"""A Milvus for tests that need a real one; they are skipped where its packages are not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tools.local_server import free_port
from tools.milvus import VARIABLE, Milvus, site


@contextmanager
def running_milvus(
    folder: Path, *, authority: trustme.CA | None = None, mutual: bool = False
) -> Iterator[Milvus]:
    """A Milvus that has started, with what `Milvus` takes; this process can import pymilvus afterwards."""
    packages = site()
    if packages is None:
        pytest.skip(
            f"no Milvus: python -m tools.milvus FOLDER installs one, and {VARIABLE}=FOLDER names it"
        )
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
    milvus = Milvus(packages, folder, free_port(), authority=authority, mutual=mutual)
    try:
        milvus.start()
        yield milvus
    finally:
        milvus.kill()
