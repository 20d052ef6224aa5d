"""Families know their outputs again in somebody else's graph."""

from itertools import permutations

import pytest

from mien_server.models.families import find_family

RETINAFACE = [(2688, 4), (2688, 2), (2688, 10)]
"""loc, conf and landmarks of an image of 256 pixels."""


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_retinaface_in_any_order(order: tuple[int, ...]) -> None:
    family = find_family("retinaface_resnet50")
    arranged = family.arrange([RETINAFACE[index] for index in order], 256)
    assert [order[index] for index in arranged] == [0, 1, 2]


@pytest.mark.parametrize(
    "shapes",
    [RETINAFACE[:2], [*RETINAFACE, (1,)], [(2688, 4), (2688, 2), (2688, 8)], [(16_800, 4)] * 3],
)
def test_what_is_not_retinafaces_is_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"loc \[2688, 4\], conf \[2688, 2\]"):
        find_family("retinaface_mobilenet0.25").arrange(shapes, 256)


@pytest.mark.parametrize("architecture", ["embedder", "sface", "iresnet50"])
def test_an_embedder_has_one_vector(architecture: str) -> None:
    family = find_family(architecture)
    assert family.arrange([(512,)], 112) == (0,)
    for shapes in ([], [(512,), (512,)], [(512, 1)]):
        with pytest.raises(ValueError, match="one output"):
            family.arrange(shapes, 112)
