"""The networks that are known by the names of their tensors.

To recognise another one, write a function like those here and add it to `STATE_DICTS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mien_server.backends.weights_file import first_names
from mien_server.models.interface import Normalisation
from mien_server.models.iresnet import DIMENSIONS
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.iresnet_graph import by_activations
from mien_server.weights.recognise.minifasnet import minifasnet
from mien_server.weights.recognise.recognised import (
    ARCFACE_INPUT,
    INSIGHTFACE_LICENSE,
    Recognised,
)
from mien_server.weights.recognise.state_dicts import find, fit, for_pytorch, keys_of

_RETINAFACE_MEAN = (104.0, 117.0, 123.0)

_SFACE_INPUT = _MTCNN_INPUT = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)

_LOOK_ALIKES = (
    (
        ("input_layer.0.weight", "output_layer.0.weight"),
        "TFace's (torchkit's) IR_50, which AdaFace uses too: another network than arcface_torch's IR-50, in"
        " spite of the name. Bring InsightFace's backbone.pth or ModelScope's"
        " cv_ir50_face-recognition_arcface, or export this one to ONNX and import that",
    ),
    (
        ("stage1.0.0.weight", "fc.weight"),
        "RetinaFace's backbone alone, as pretrained for its training: bring mobilenet0.25_Final.pth",
    ),
    (
        ("layer4.2.conv3.weight", "fc.weight"),
        "a ResNet-50 classifier: no face network. RetinaFace's is Resnet50_Final.pth",
    ),
    (
        ("conv2d_1a.conv.weight", "last_linear.weight"),
        "FaceNet's InceptionResnetV1, which wants crops of another size and alignment: not served here",
    ),
)
"""Keys of networks that are easily taken for one of ours, and what to say of them."""


def iresnet(contents: Mapping[Any, Any], source: str) -> Recognised | None:  # noqa: ARG001
    """InsightFace's arcface_torch backbones; ModelScope's cv_ir50_face-recognition_arcface."""
    found = find(contents, "layer1.0.prelu.weight")
    if found is None:
        return None
    blocks = sum(key.endswith(".prelu.weight") for key in found.state)
    architecture = by_activations(blocks + 1)
    if architecture is None:
        raise WeightsError(
            f"an IResNet of {blocks} residual blocks, where mien serves iresnet18, 34, 50 and 100 with"
            " 8, 16, 24 and 49: export it to ONNX and import that"
        )
    state, notes = fit(found, architecture)
    return for_pytorch(
        architecture,
        state,
        notes,
        title="ArcFace IResNet (InsightFace arcface_torch, ModelScope cv_ir50_face-recognition_arcface)",
        normalisation=ARCFACE_INPUT,
        license_=INSIGHTFACE_LICENSE,
        dimensions=DIMENSIONS,
    )


def retinaface(contents: Mapping[Any, Any], source: str) -> Recognised | None:
    """RetinaFace of biubug6/Pytorch_Retinaface and of ModelScope: the same network and keys."""
    found = find(contents, "ClassHead.0.conv1x1.weight")
    if found is None:
        return None
    small = any(key.startswith("body.stage1.") for key in found.state)
    architecture = "retinaface_mobilenet0.25" if small else "retinaface_resnet50"
    state, notes = fit(found, architecture)
    rgb = "modelscope" in source.lower()
    if not small and not rgb:
        notes.append(
            "taken for biubug6's, which sees BGR; ModelScope's is the same network and sees RGB: if this is"
            ' one, say so with --source modelscope, and set channel_order to "RGB"'
        )
    return for_pytorch(
        architecture,
        state,
        notes,
        title="RetinaFace (biubug6/Pytorch_Retinaface, ModelScope)",
        normalisation=Normalisation("RGB" if rgb else "BGR", _RETINAFACE_MEAN, 1),
        license_="not stated; biubug6's public weights are MIT",
    )


def sface(contents: Mapping[Any, Any], source: str) -> Recognised | None:  # noqa: ARG001
    """SFace under mien's own keys: what `models install` writes, and what was trained on from there."""
    found = find(contents, "stem.conv.weight")
    if found is None:
        return None
    state, notes = fit(found, "sface")
    return for_pytorch(
        "sface",
        state,
        notes,
        title="SFace, under mien's own names of its tensors",
        normalisation=_SFACE_INPUT,
        license_="not stated; the OpenCV Zoo's public weights are Apache-2.0",
        dimensions=state["fc.weight"].shape[0],
    )


def mtcnn(contents: Mapping[Any, Any], source: str) -> Recognised | None:  # noqa: ARG001
    """MTCNN's three networks in one file, under mien's own keys."""
    found = find(contents, "pnet.conv1.weight")
    if found is None:
        return None
    state, notes = fit(found, "mtcnn")
    return for_pytorch(
        "mtcnn",
        state,
        notes,
        title="MTCNN, under mien's own names of its tensors",
        normalisation=_MTCNN_INPUT,
        license_="not stated; facenet-pytorch's public weights are MIT",
    )


STATE_DICTS: tuple[Callable[[Mapping[Any, Any], str], Recognised | None], ...] = (
    iresnet,
    retinaface,
    sface,
    mtcnn,
    minifasnet,
)
"""Each looks at a checkpoint's mapping and at where it came from, and may refuse it by a WeightsError."""


def unknown_state_dict(contents: Mapping[Any, Any]) -> str:
    """What to say of a checkpoint that none of them recognises."""
    names = keys_of(contents)
    for keys, explanation in _LOOK_ALIKES:
        if all(any(name.endswith(key) for name in names) for key in keys):
            return f"it is {explanation}"
    holds = f"{len(names)} tensors ({first_names(names)})" if names else "no tensors by name"
    return (
        f"it holds {holds}, and is none of the networks that mien has: ArcFace's IResNet (18, 34, 50, 100),"
        " RetinaFace (mobilenet0.25, resnet50), SFace, MTCNN, MiniFASNet and FairFace's, and the networks of"
        " installed packages. Other embedders come in as ONNX"
    )
