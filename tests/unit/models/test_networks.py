"""The networks have the public checkpoints' keys, sizes and shapes."""

import pytest
import torch

from mien_server.models.families import find_family
from mien_server.models.retinaface import priors

PUBLIC_SIZES = {
    "retinaface_mobilenet0.25": (300, 426_608),
    "retinaface_resnet50": (456, 27_293_600),
    "iresnet50": (475, 43_590_848),
}


@pytest.mark.parametrize("name", PUBLIC_SIZES)
def test_keys_and_parameters_are_as_many_as_the_public_checkpoint_has(name: str) -> None:
    network = find_family(name).network()

    keys = len(network.state_dict())
    parameters = sum(parameter.numel() for parameter in network.parameters())

    assert (keys, parameters) == PUBLIC_SIZES[name]


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("retinaface_mobilenet0.25", "body.stage1.0.0.weight", (8, 3, 3, 3)),
        ("retinaface_mobilenet0.25", "body.stage1.1.3.weight", (16, 8, 1, 1)),
        ("retinaface_mobilenet0.25", "body.stage3.1.4.running_var", (256,)),
        ("retinaface_mobilenet0.25", "fpn.merge2.0.weight", (64, 64, 3, 3)),
        ("retinaface_mobilenet0.25", "ssh3.conv7x7_3.1.bias", (16,)),
        ("retinaface_resnet50", "body.layer4.0.downsample.0.weight", (2048, 1024, 1, 1)),
        ("retinaface_resnet50", "fpn.output3.0.weight", (256, 2048, 1, 1)),
        ("retinaface_resnet50", "ClassHead.2.conv1x1.weight", (4, 256, 1, 1)),
        ("retinaface_resnet50", "LandmarkHead.0.conv1x1.bias", (20,)),
        ("iresnet50", "layer3.13.prelu.weight", (256,)),
        ("iresnet50", "layer1.0.downsample.0.weight", (64, 64, 1, 1)),
        ("iresnet50", "fc.weight", (512, 25088)),
        ("iresnet50", "features.running_mean", (512,)),
    ],
)
def test_key_has_the_public_name_and_shape(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert tuple(find_family(name).network().state_dict()[key].shape) == shape


@pytest.mark.parametrize("blocks", [("iresnet18", 8), ("iresnet34", 16), ("iresnet100", 49)])
def test_iresnets_differ_in_their_number_of_blocks(blocks: tuple[str, int]) -> None:
    name, count = blocks
    keys = find_family(name).network().state_dict()
    assert sum(key.endswith("conv1.weight") for key in keys) == count + 1


def test_loading_is_strict_and_names_what_is_missing_and_left_over() -> None:
    network = find_family("retinaface_mobilenet0.25").network()
    state = network.state_dict()
    state["ssh1.unheard_of"] = state.pop("fpn.merge1.0.weight")

    with pytest.raises(RuntimeError, match=r"(?s)fpn\.merge1\.0\.weight.*ssh1\.unheard_of"):
        network.load_state_dict(state)


@pytest.mark.parametrize("name", ["retinaface_mobilenet0.25", "retinaface_resnet50"])
@pytest.mark.parametrize("side", [128, 150])  # 150 is no multiple of a stride
@torch.inference_mode()
def test_a_detector_speaks_of_every_prior(name: str, side: int) -> None:
    network = find_family(name).network()
    count = len(priors(side))

    loc, conf, landmarks = network(torch.randn(2, 3, side, side))

    assert loc.shape == (2, count, 4)
    assert conf.shape == (2, count, 2)
    assert landmarks.shape == (2, count, 10)
    torch.testing.assert_close(conf.sum(-1), torch.ones(2, count))


@torch.inference_mode()
def test_a_detectors_scores_are_float32_at_any_precision() -> None:
    network = find_family("retinaface_mobilenet0.25").network().bfloat16()
    _, conf, _ = network(torch.randn(1, 3, 64, 64).bfloat16())
    assert conf.dtype == torch.float32


@pytest.mark.parametrize(("name", "dimensions"), [("iresnet18", 512), ("sface", 128)])
@torch.inference_mode()
def test_an_embedder_gives_a_vector_per_face(name: str, dimensions: int) -> None:
    assert find_family(name).network()(torch.randn(2, 3, 112, 112)).shape == (2, dimensions)


@pytest.mark.parametrize(
    ("name", "side"), [("retinaface_mobilenet0.25", 96), ("iresnet18", 112), ("sface", 112)]
)
@torch.inference_mode()
def test_outputs_do_not_depend_on_the_memory_layout(name: str, side: int) -> None:
    network = find_family(name).network()
    pixels = torch.randn(2, 3, side, side)
    expected = network(pixels)

    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    outputs = network(pixels.to(memory_format=torch.channels_last))

    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
