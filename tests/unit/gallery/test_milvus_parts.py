"""What of Milvus' store needs no Milvus: addresses, names, numbers, and persons made of faces."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.errors import GalleryUnavailable, OperatorError
from mien_server.gallery.milvus_link import Link
from mien_server.gallery.milvus_rows import (
    Hashes,
    Ids,
    collection_of,
    description_of,
    face_of,
    row_of,
    table_of,
)
from mien_server.gallery.milvus_search import MOST_HITS, search
from mien_server.gallery.milvus_tables import Table
from mien_server.gallery.record import FaceRow
from mien_server.gallery.search import Lanes, Search
from mien_server.gallery.types import Collection, Query
from mien_server.observability.model_metrics import ModelMetrics
from mien_server.pipeline.types import ModelIdentity, Quality
from mien_server.settings import Settings, SettingsError, load_settings
from tests.unit.gallery.vectors import clustered_units, filled, random_units
from tests.unit.pipeline.scripted import World

HASHES = Hashes(b"s" * 32)


@pytest.mark.parametrize(
    "url",
    [
        *("http://host:19530", "milvus://", "milvus:///db", "redis://host"),
        *("milvus://host:19530?a=b", "milvus://host:port", "milvus://host:123456", "milvus://[::1"),
    ],
)
def test_url_that_is_none_of_a_milvus_is_told(url: str) -> None:
    with pytest.raises(OperatorError, match=r"--gallery-url.*milvus://host:19530"):
        Link(url)


def test_ipv6_address_is_refused_since_pymilvus_cannot_reach_it() -> None:
    with pytest.raises(OperatorError, match=r"--gallery-url.*IPv6.*milvus\+tls://host:7"):
        Link("milvus+tls://[::1]:7/faces")


def test_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(OperatorError, match="--gallery-token-file") as caught:
        Link("milvus://user:a-secret@host:19530")
    assert "a-secret" not in str(caught.value)


def test_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(OperatorError, match=r"mien\[milvus\]"):
        Link("milvus://127.0.0.1:19530")


def test_galleries_have_one_place() -> None:
    with pytest.raises(SettingsError, match="--gallery-dir"):
        load_settings({"gallery_dir": "/tmp/g", "gallery_url": "milvus://host"})  # noqa: S108
    assert Settings(gallery_url="milvus://host").gallery_dir is None


def test_names_of_collections_stay_apart() -> None:
    names = ["a-b", "a_b", "a.b", "a_mb", "a__b", "a-_b", "A-b", "0", "a" * 64, "a_d", "a."]
    tables = [table_of(name) for name in names]
    assert len(set(tables)) == len(names)
    assert all(table.replace("_", "a").isalnum() and len(table) <= 255 for table in tables)


def test_description_says_all_of_a_collection() -> None:
    model = ModelIdentity("sface", 3, "0123456789abcdef")
    for threshold in (None, 0.45):
        collection = Collection(7, "staff", model, 128, threshold, 1_700_000_000.123456)
        assert collection_of(description_of(collection)) == collection
    for foreign in ("", "{}", "[]", "text", '{"mien": 2}', '{"embedder": 1}'):
        assert collection_of(foreign) is None


def test_ids_ascend_and_two_servers_give_different_ones() -> None:
    ids = Ids()
    given = ids.take(5000) + ids.take(3) + ids.take(1)
    assert given == sorted(set(given))
    assert 0 < given[0] < given[-1] < 2**63
    one, two = Ids(), Ids()
    one._tag, two._tag = 1, 2
    assert not set(one.take(500)) & set(two.take(500))


def test_face_comes_back_as_it_went() -> None:
    quality = Quality(0.2, 0.5, 0.1, size=80.0)
    labels = {"é": '"日本"', "a": "\\"}
    row = row_of(
        FaceRow('ann "\\', labels, "key", quality, 9.0, random_units(1, 4)[0]), 5, HASHES, 1.5
    )
    told = face_of(row)
    assert (told.key, told.person, told.labels, told.quality, told.created) == (
        *(5, 'ann "\\', labels, quality, 1.5),
    )
    assert row["request"] == HASHES.of("key")
    assert len(row["label_hashes"]) == 2
    unnamed = row_of(FaceRow("", {}, "", None, 1.0, random_units(1, 4)[0]), 6, HASHES, 1.0)
    assert (unnamed["person_hash"], unnamed["request"]) == ("", "")
    assert face_of(unnamed).labels == {}


@pytest.mark.parametrize("clustered", [False, True])
def test_persons_are_those_of_the_exact_search(clustered: bool) -> None:
    """A store of faces that answers as Milvus does, asked for more until there are persons enough."""
    count = 3000
    vectors = clustered_units(count, 16, 5) if clustered else random_units(count, 16)
    persons = [i % 7 if i % 3 else 100 + i % 40 for i in range(count)]
    index = filled(vectors, persons)
    asked: list[int] = []

    def ask(queries: Sequence[Any], where: str, limit: int) -> list[list[dict[str, Any]]]:
        asked.append(limit)
        answers = []
        for query in queries:
            cosines = vectors.astype(np.float64) @ np.asarray(query, np.float64)
            wanted = [i for i in range(count) if _fits(where, f"p{persons[i]}")]
            best = sorted(wanted, key=lambda i: -cosines[i])[:limit]
            answers.append(
                [
                    {
                        "id": i + 1,
                        "distance": cosines[i],
                        "entity": {
                            "person": f"p{persons[i]}",
                            "person_hash": HASHES.of(f"p{persons[i]}"),
                            "labels": "",
                        },
                    }
                    for i in best
                ]
            )
        return answers

    for top_k, threshold in ((1, -1.0), (30, -1.0), (47, -1.0), (5, 0.4)):
        for vector in random_units(4, 16, seed=9):
            query = Query(vector, top_k, threshold)
            (found,) = search([query], HASHES, ask)
            with contextlib.closing(Lanes(CpuDevice(1))) as lanes:
                in_memory = Search(index, lanes, index.record)
                (exact,) = in_memory.compute(in_memory.collate([query]))
            assert [m.person for m in found] == [m.person for m in exact.matches]
            for one, other in zip(found, exact.matches, strict=True):
                assert [s.key for s in one.samples] == [s.key for s in other.samples]
    assert max(asked) <= MOST_HITS


def _fits(where: str, person: str) -> bool:
    return "person_hash in" not in where or HASHES.of(person) in where


class _Galleries:
    """What metrics ask of a store. None: it is in a Milvus that has never answered."""

    def __init__(self, tables: list[Table] | None) -> None:
        self._tables = tables

    def collections(self) -> list[Table]:
        if self._tables is None:
            raise GalleryUnavailable("away")
        return self._tables


@pytest.mark.parametrize("there", [True, False])
def test_metrics_count_collections_that_have_no_queue_here(world: World, there: bool) -> None:
    model = ModelIdentity("sface", 1, "0123456789abcdef")
    table = Table(Collection(7, "staff", model, 128, None, 1.5), "there", faces=3)
    galleries: Any = _Galleries([table] if there else None)
    families = {each.name: each for each in ModelMetrics(world.catalogue, galleries).collect()}
    counted = [(each.labels, each.value) for each in families["mien_gallery_faces"].samples]
    assert counted == ([({"collection": "staff"}, 3)] if there else [])
    assert families["mien_model_state"].samples
