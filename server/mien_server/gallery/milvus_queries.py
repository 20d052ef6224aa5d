"""What is asked of one collection in Milvus, in its own words. Everything here blocks."""

from collections.abc import Iterator, Sequence
from typing import Any

from mien_server.gallery.milvus_link import READ_SECONDS, WRITE_SECONDS
from mien_server.gallery.milvus_tables import Table
from mien_server.gallery.reading import no_face

_PAGE, _VECTORS_PAGE = 16_384, 4096
"""Faces that are read at a time: Milvus gives no more, and vectors of 512 numbers are 8 MB by then."""


def scan(
    client: Any, table: Table, fields: list[str], *, where: str = "", after: int = -1
) -> Iterator[list[dict[str, Any]]]:
    """The faces of a collection with keys above `after`, by their keys, some at a time."""
    page = _VECTORS_PAGE if "vector" in fields else _PAGE
    while True:
        condition = f"id > {after}" + (f" and {where}" if where else "")
        rows = client.query(
            table.name, filter=condition, output_fields=fields, limit=page, timeout=WRITE_SECONDS
        )
        some = sorted(map(dict, rows), key=lambda row: row["id"])
        if some:
            yield some
            after = some[-1]["id"]
        if len(some) < page:
            return


def query(
    client: Any,
    table: Table,
    where: str,
    fields: list[str],
    *,
    limit: int,
    level: str = "Bounded",
) -> list[dict[str, Any]]:
    """The first faces of a filter, by their keys, at most `limit`."""
    rows = client.query(
        table.name,
        filter=where,
        output_fields=fields,
        limit=limit,
        consistency_level=level,
        timeout=READ_SECONDS,
    )
    return sorted(map(dict, rows), key=lambda row: int(row["id"]))


def wait(client: Any, table: Table) -> None:
    """Waits until what was written before is seen by every read."""
    query(client, table, "id == 0", ["id"], limit=1, level="Strong")


def by_request(
    client: Any, table: Table, keys: Sequence[str], level: str
) -> dict[str, dict[str, Any]]:
    """The first face of each of these hashes of request keys."""
    if not keys:
        return {}
    wanted = ", ".join(f'"{key}"' for key in keys)
    fields = ["id", "person", "request"]
    rows = query(client, table, f"request in [{wanted}]", fields, limit=4 * len(keys), level=level)
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["request"], row)
    return first


def given(
    client: Any, table: Table, faces: Sequence[int], fields: list[str]
) -> list[dict[str, Any]]:
    """The faces of these keys, in their order.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND.
    """
    wanted = ", ".join(map(str, faces))
    rows = query(client, table, f"id in [{wanted}]", fields, limit=len(faces))
    found = {row["id"]: row for row in rows}
    for number, key in enumerate(faces):
        if key not in found:
            raise no_face(table.collection, key, f"face_ids[{number}]")
    return [found[key] for key in faces]


def emptied(client: Any, table: Table, persons: dict[str, str]) -> list[str]:
    """The names of those of the persons, by their hashes, who have no face."""
    return [
        name
        for key, name in persons.items()
        if name and not query(client, table, f'person_hash == "{key}"', ["id"], limit=1)
    ]
