"""Searching a collection in Milvus: faces come back, persons are made of them.

Milvus gives the most similar faces, not persons, so as many are asked for as are likely to hold the wanted
persons, and more if they do not.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from mien_server.gallery.labels import to_text
from mien_server.gallery.milvus_rows import Hashes, labels_of, search_filter
from mien_server.gallery.search import MAX_SAMPLES
from mien_server.gallery.types import Match, Query, Sample

MOST_HITS = 16_384
"""That Milvus gives for one query."""

_FIRST_HITS = 64
_MORE_SAMPLES = 1024
"""Faces of the persons found that are asked for at a time: more than `MAX_SAMPLES` of each of 100."""

_Hit: TypeAlias = Mapping[str, Any]
Ask: TypeAlias = Callable[[Sequence[Any], str, int], Sequence[Sequence[_Hit]]]
"""Vectors, a filter and how many faces to give for each: the faces, each with `id`, `distance`, `entity`."""


def search(queries: Sequence[Query], hashes: Hashes, ask: Ask) -> list[list[Match]]:
    """The persons most like each query, the best first; of equals the one enrolled first."""
    found: list[list[Match]] = []
    for _, alike in groupby(queries, key=lambda query: (query.top_k, to_text(query.labels))):
        some = list(alike)
        where = search_filter(hashes, some[0].labels)
        limit = min(MOST_HITS, max(_FIRST_HITS, 4 * some[0].top_k))
        answers = ask([query.vector for query in some], where, limit)
        for query, hits in zip(some, answers, strict=True):
            found.append(_persons(query, hits, limit, where, ask))
    return found


def _persons(query: Query, hits: Sequence[_Hit], limit: int, where: str, ask: Ask) -> list[Match]:
    while True:
        hits = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
        complete = len(hits) < limit or hits[-1]["distance"] < query.threshold
        matches = _matches(query, hits)
        if complete or len(matches) >= query.top_k or limit == MOST_HITS:
            break
        limit = min(MOST_HITS, 4 * limit)
        (hits,) = ask([query.vector], where, limit)
    matches = dict(list(matches.items())[: query.top_k])
    while not complete:
        # Further faces of these persons may be beyond those that came. Each answer completes one at least.
        few = [key for key, match in matches.items() if len(match.samples) < MAX_SAMPLES]
        if not few:
            break
        chosen = ", ".join(f'"{key}"' for key in few)
        (hits,) = ask([query.vector], f"{where} and person_hash in [{chosen}]", _MORE_SAMPLES)
        hits = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
        complete = len(hits) < _MORE_SAMPLES or hits[-1]["distance"] < query.threshold
        matches |= _matches(query, hits)
    return list(matches.values())


def _matches(query: Query, hits: Sequence[_Hit]) -> dict[str, Match]:
    """The persons of hits at or above the threshold, by their hashes, the best first."""
    found: dict[str, tuple[str, list[Sample]]] = {}
    for hit in hits:
        similarity = min(1.0, max(-1.0, float(hit["distance"])))
        if similarity < query.threshold:
            continue
        face = hit["entity"]
        _, samples = found.setdefault(face["person_hash"], (face["person"], []))
        if len(samples) < MAX_SAMPLES:
            samples.append(Sample(int(hit["id"]), similarity, labels_of(face)))
    return {
        key: Match(name, samples[0].similarity, samples) for key, (name, samples) in found.items()
    }
