"""Many callers at once get the answers that each would have got alone."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

import mien

CLIENTS = 8
VARIANTS = 5
PEOPLE = {"person_a_1": "a", "person_a_2": "a", "person_b_1": "b", "person_b_2": "b"}


@dataclass(frozen=True)
class Photo:
    """A portrait on a canvas of its own, so that no two photos have their face at the same place."""

    person: str
    size: tuple[int, int]
    data: bytes


@dataclass(frozen=True)
class Work:
    """One call: its method, and the photos it sends, by index."""

    method: str
    photos: tuple[int, ...]


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[Photo]:
    made = []
    for variant in range(VARIANTS):
        for number, path in enumerate(portraits):
            with Image.open(path) as portrait:
                corner = (11 * variant + 3 * number, 7 * variant + 5 * number)
                size = (portrait.width + 2 * corner[0] + 1, portrait.height + corner[1])
                canvas = Image.new("RGB", size, (104, 117, 123))
                canvas.paste(portrait, corner)
            encoded = io.BytesIO()
            canvas.save(encoded, "JPEG", quality=95)
            made.append(Photo(PEOPLE.get(path.stem, path.stem), size, encoded.getvalue()))
    return made


def mixed_work(calls: int, photos: int) -> list[Work]:
    """Two fifths of the calls detect, two fifths embed, one verifies."""
    random = Random(7)  # noqa: S311 - a fixed mix
    singles = [
        Work(method, (random.randrange(photos),))
        for method in ("detect", "embed")
        for _ in range(calls * 2 // 5)
    ]
    pairs = [
        Work("verify", tuple(random.sample(range(photos), 2))) for _ in range(calls - len(singles))
    ]
    mixed = singles + pairs
    random.shuffle(mixed)
    return mixed


Answer = mien.DetectResult | mien.EmbedResult | mien.VerifyResult


@pytest.mark.parametrize("calls", [25, pytest.param(200, marks=pytest.mark.long)])
def test_mixed_calls_of_eight_clients_equal_a_serial_run(
    server_address: str, photos: list[Photo], calls: int
) -> None:
    work = mixed_work(calls, len(photos))
    clients = [mien.Client(server_address, timeout=120) for _ in range(CLIENTS)]

    def answer(client: mien.Client, item: Work) -> Answer:
        call: Callable[..., Answer] = getattr(client, item.method)
        return call(*(photos[index].data for index in item.photos), timing=True)

    alone = [answer(clients[0], item) for item in work]
    with ThreadPoolExecutor(CLIENTS) as pool:
        shares = [
            pool.submit(lambda mine, client: [answer(client, item) for item in mine], share, client)
            for client, share in zip(
                clients, (work[n::CLIENTS] for n in range(CLIENTS)), strict=True
            )
        ]
        together: list[Answer | None] = [None] * len(work)
        for number, share in enumerate(shares):
            together[number::CLIENTS] = share.result()
    for client in clients:
        client.close()

    for item, one, other in zip(work, alone, together, strict=True):
        _assert_right(item, one, photos)
        _assert_equal(one, other)
    batches = [stage.batch for answer in together if answer for stage in answer.timing]
    assert max(batch or 1 for batch in batches) > 1, "calls of different clients share no batch"


def _assert_right(item: Work, answer: Answer, photos: list[Photo]) -> None:
    """The answer belongs to the photos that were sent."""
    sent = [photos[index] for index in item.photos]
    if isinstance(answer, mien.VerifyResult):
        assert answer.matched == (sent[0].person == sent[1].person), item
    else:
        assert len(answer.faces) == 1, item
        assert (answer.image_width, answer.image_height) == sent[0].size, item


def _assert_equal(one: Answer, other: Answer | None) -> None:
    assert type(one) is type(other)
    if isinstance(one, mien.VerifyResult) and isinstance(other, mien.VerifyResult):
        assert other.similarity == pytest.approx(one.similarity, abs=5e-3)
        assert other.matched == one.matched
    for face, twin in zip(_faces(one), _faces(other), strict=True):
        _assert_same_face(face, twin)


def _faces(answer: Answer | None) -> tuple[mien.Face, ...]:
    match answer:
        case mien.VerifyResult():
            return (answer.face_a, answer.face_b)
        case mien.DetectResult() | mien.EmbedResult():
            return answer.faces
    return ()


def _assert_same_face(one: mien.Face, other: mien.Face) -> None:
    assert one.box is not None
    assert other.box is not None
    assert other.box.as_list() == pytest.approx(one.box.as_list(), abs=0.5)
    assert other.score == pytest.approx(one.score, abs=0.01)
    assert (one.embedding is None) == (other.embedding is None)
    if one.embedding and other.embedding:
        assert other.embedding.model == one.embedding.model
        cosine = float(np.dot(one.embedding.values, other.embedding.values))
        assert cosine > 1 - 1e-3
