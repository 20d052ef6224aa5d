"""The MTCNN cascade and its family, with weights that need no download."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mien_server.backends.cuda import capturable
from mien_server.backends.network import PixelNetwork
from mien_server.models.detections import Detections
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, Normalisation
from mien_server.models.mtcnn import MTCNNFamily
from mien_server.models.networks import mtcnn
from mien_server.models.networks.mtcnn import MTCNN
from mien_server.models.roles import DetectorOptions, DetectorRow

PIXELS = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
CANVAS = np.zeros((100, 100, 3), np.uint8)


def detections(
    boxes: list[list[float]], scores: list[float], *, min_score: float = 0.5, overlap: float = 0.4
) -> Detections:
    """What the family makes of one canvas's outputs."""
    landmarks = np.arange(len(boxes) * 10, dtype=np.float32).reshape(1, -1, 5, 2)
    outputs: list[ArrayF32] = [
        np.array(boxes, np.float32).reshape(1, -1, 4),
        np.array(scores, np.float32)[None],
        landmarks,
    ]
    (found,) = MTCNNFamily().results(
        outputs, [DetectorRow(CANVAS, min_score)], DetectorOptions(nms_threshold=overlap)
    )
    return found


@pytest.mark.parametrize(
    ("name", "keys", "parameters", "key", "shape"),
    [
        ("pnet", 13, 6_632, "conv2.weight", (16, 10, 3, 3)),
        ("rnet", 16, 100_178, "dense4.weight", (128, 576)),
        ("onet", 21, 389_040, "dense6_3.bias", (10,)),
    ],
)
def test_keys_and_sizes_are_those_of_the_public_checkpoints(
    name: str, keys: int, parameters: int, key: str, shape: tuple[int, ...]
) -> None:
    state = find_family("mtcnn").network().get_submodule(name).state_dict()
    assert len(state) == keys
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert state[key].shape == shape


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 12), (14, 40), (45, 31)])
@torch.inference_mode()
def test_p_net_looks_at_every_second_window(height: int, width: int) -> None:
    scores, offsets = MTCNN().pnet(torch.zeros(2, 3, height, width))
    # Half a pixel more than fits, since pooling rounds up.
    cells = (-(-(height - 10) // 2), -(-(width - 10) // 2))
    assert scores.shape == (2, *cells)
    assert offsets.shape == (2, 4, *cells)


def eager(*, p: float, r: float, o: float) -> MTCNN:
    """A cascade whose networks give everything the same log-odds of being a face, and move nothing."""
    network = MTCNN().eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    for head, odds in (
        (network.pnet.conv4_1, p),
        (network.rnet.dense5_1, r),
        (network.onet.dense6_1, o),
    ):
        assert head.bias is not None
        head.bias.data[1] = odds
    return network.requires_grad_(requires_grad=False)


def test_work_is_bounded_whatever_the_networks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtcnn, "PROPOSALS", 100)
    monkeypatch.setattr(mtcnn, "REFINED", 40)
    monkeypatch.setattr(mtcnn, "CHUNK", 32)
    network = eager(p=5, r=5, o=5)
    looked: dict[str, list[int]] = {"rnet": [], "onet": []}
    for name, crops in looked.items():
        network.get_submodule(name).register_forward_hook(
            lambda _, given, __, crops=crops: crops.append(len(given[0]))
        )
    photos = 2
    boxes, scores, landmarks = network(torch.zeros(photos, 3, 320, 320))

    assert max(*looked["rnet"], *looked["onet"]) == 32
    assert 32 < sum(looked["rnet"]) <= photos * 100
    assert 32 < sum(looked["onet"]) <= photos * 40
    assert scores.shape[1] <= 40
    assert boxes.shape == (photos, scores.shape[1], 4)
    assert landmarks.shape == (photos, scores.shape[1], 5, 2)


@pytest.mark.parametrize(("p", "r"), [(-5.0, 5.0), (5.0, -5.0), (0.3, 5.0), (5.0, 0.8)])
def test_a_canvas_without_candidates_has_no_faces(p: float, r: float) -> None:
    outputs = eager(p=p, r=r, o=5)(torch.zeros(3, 3, 96, 96))
    assert [tuple(output.shape) for output in outputs] == [(3, 0, 4), (3, 0), (3, 0, 5, 2)]
    rows = [DetectorRow(CANVAS, 0.5)] * 3
    for found in MTCNNFamily().results([o.numpy() for o in outputs], rows, DetectorOptions()):
        assert [part.shape for part in found] == [(0, 4), (0,), (0, 5, 2)]


@pytest.mark.parametrize(("p", "r"), [(0.5, 5.0), (5.0, 0.9)])
def test_what_p_net_and_r_net_are_just_sure_enough_of_is_looked_at(p: float, r: float) -> None:
    assert eager(p=p, r=r, o=5)(torch.zeros(1, 3, 96, 96))[1].shape[1] > 0


def test_windows_halve_their_area_from_one_scale_to_the_next() -> None:
    boxes = eager(p=5, r=5, o=5)(torch.zeros(1, 3, 64, 64))[0][0].numpy()
    sides = np.unique(np.round(boxes[:, 2] - boxes[:, 0]))
    np.testing.assert_allclose(sides, [20, 29, 40, 55], atol=1)


def test_windows_tile_the_canvas_and_landmarks_sit_in_them() -> None:
    network = eager(p=5, r=5, o=5)
    bias = network.onet.dense6_3.bias
    assert bias is not None
    # Five x, then five y.
    bias.data.copy_(torch.tensor([0.3, 0.7, 0.5, 0.35, 0.65, 0.4, 0.4, 0.6, 0.8, 0.8]))
    boxes, scores, landmarks = (output[0].numpy() for output in network(torch.zeros(1, 3, 64, 64)))
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-5)
    assert sides.min() == pytest.approx(mtcnn.SMALLEST_WINDOW, rel=0.05)
    assert boxes[:, :2].min() == pytest.approx(0, abs=1e-3)
    # The last window of a scale may reach a pixel of that scale too far, since pooling rounds up.
    assert 64 <= boxes.max() <= 64 * 13 / 12
    np.testing.assert_allclose(scores, torch.tensor(5.0).sigmoid())
    places = (landmarks - boxes[:, None, :2]) / sides[:, None]
    expected = [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]
    np.testing.assert_allclose(places, np.tile(expected, (len(boxes), 1, 1)), atol=1e-4)


def fond_of_light() -> MTCNN:
    """A cascade that takes bright windows for faces."""
    network = eager(p=0, r=5, o=5)
    for layer in (network.pnet.conv1, network.pnet.conv2, network.pnet.conv3):
        layer.weight.data[0] = 1 / 9
    network.pnet.conv4_1.weight.data[1, 0] = 3
    return network


def test_a_batch_of_different_canvases_equals_one_by_one() -> None:
    # No two windows are equally bright, so rounding decides nothing.
    light = torch.rand(96, 96, generator=torch.Generator().manual_seed(3)) + 0.5
    canvases = torch.zeros(3, 3, 96, 96)
    canvases[1, :, 10:50, 20:60] = light[10:50, 20:60]
    canvases[2, :, 60:, 60:] = light[60:, 60:]
    canvases[2, :, :20, :20] = light[:20, :20]
    network = fond_of_light()
    boxes, scores, landmarks = network(canvases)
    counts = (scores > 0).sum(dim=1).tolist()
    assert counts[0] == 0
    assert counts[1] != counts[2]
    assert min(counts[1:]) > 0
    for index, count in enumerate(counts):
        alone = network(canvases[index, None])
        assert alone[1].shape == (1, count)
        for mixed, expected in zip((boxes, scores, landmarks), alone, strict=True):
            torch.testing.assert_close(mixed[index, :count], expected[0], atol=1e-5, rtol=1e-5)
        assert not scores[index, count:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_outputs_are_float32_at_any_precision(dtype: torch.dtype) -> None:
    network = PixelNetwork(eager(p=5, r=5, o=5), PIXELS, dtype)
    outputs = network(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert {output.dtype for output in outputs} == {torch.float32}
    assert outputs[0].shape[1] > 0


def test_gpus_run_it_without_graphs_but_other_networks_with() -> None:
    for name, expected in (("mtcnn", False), ("sface", True), ("retinaface_mobilenet0.25", True)):
        network = PixelNetwork(find_family(name).network(), PIXELS, torch.float32)
        assert capturable(network) is expected


def test_each_row_has_its_own_score_to_beat() -> None:
    boxes = np.tile(
        np.array([[0, 0, 20, 20], [30, 0, 50, 20], [60, 0, 80, 20]], np.float32), (2, 1, 1)
    )
    scores = np.tile(np.array([0.4, 0.9, 0.6], np.float32), (2, 1))
    outputs: list[ArrayF32] = [boxes, scores, np.zeros((2, 3, 5, 2), np.float32)]
    rows = [DetectorRow(CANVAS, 0.3), DetectorRow(CANVAS, 0.6)]
    low, high = MTCNNFamily().results(outputs, rows, DetectorOptions())
    np.testing.assert_allclose(low.scores, [0.9, 0.6, 0.4])
    np.testing.assert_allclose(low.boxes[:, 0], [30, 60, 0])
    np.testing.assert_allclose(high.scores, [0.9])


def test_what_fills_up_the_outputs_is_no_face() -> None:
    found = detections([[0, 0, 20, 20], [0, 0, 0, 0]], [0.9, 0.0], min_score=0.0)
    assert found.scores.tolist() == pytest.approx([0.9])


def test_landmarks_go_with_their_boxes() -> None:
    found = detections([[0, 0, 20, 20], [50, 50, 80, 80]], [0.6, 0.9])
    np.testing.assert_array_equal(found.landmarks[:, 0, 0], [10, 0])


@pytest.mark.parametrize(("overlap", "count"), [(0.3, 1), (0.7, 2)])
def test_overlapping_faces_are_one_from_the_configured_iou(overlap: float, count: int) -> None:
    found = detections([[0, 0, 30, 30], [10, 0, 40, 30]], [0.9, 0.8], overlap=overlap)
    assert len(found.scores) == count


def test_a_face_inside_a_better_one_is_dropped_whatever_the_iou() -> None:
    found = detections([[0, 0, 60, 60], [10, 10, 30, 30]], [0.9, 0.8], overlap=1.0)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 60, 60]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_face(bad: float) -> None:
    assert not len(detections([[0, 0, bad, 20]], [0.9]).scores)
    assert not len(detections([[0, 0, 20, 20]], [bad]).scores)


def test_no_single_onnx_graph_is_taken_for_it() -> None:
    arrange: Callable[..., object] = find_family("mtcnn").arrange
    with pytest.raises(ValueError, match="cascade of three networks"):
        arrange([(100, 4), (100, 2), (100, 10)], 320)
