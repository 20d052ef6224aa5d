"""How collections and faces lie in Milvus: names, fields, and what they are found by.

A collection of mien's is one of Milvus' whose description tells the rest; Milvus refuses a second one of the
same name and another description, so that of two servers that make one at the same time one succeeds.
Filters compare numbers and hashes only, and nothing of a caller's needs escaping.
"""

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import Collection, EnrolledFace, Labels, StoredFace
from mien_server.pipeline.types import ArrayF32, ModelIdentity, Quality

PREFIX = "mien_"
SALT_TABLE = "mien0salt"
"""A collection of Milvus' without faces, whose description is the salt of all hashes."""

_HASH_BYTES = 16
_MAX_TEXT = 65535
_PERSON_BYTES = 256
_EPOCH_MS = 1_700_000_000_000

FACE_FIELDS = ["id", "person", "labels", "quality", "created"]
ALL_FIELDS = [*FACE_FIELDS, "person_hash", "label_hashes", "request", "norm", "vector"]


class Ids:
    """Numbers for faces that ascend and that no other server gives: milliseconds, its tag, a count."""

    def __init__(self) -> None:
        self._tag = int.from_bytes(np.random.default_rng().bytes(2), "big") & 0x3FF
        self._lock = threading.Lock()
        self._last = 0

    def take(self, count: int) -> list[int]:
        """So many, ascending."""
        with self._lock:
            first = max((int(time.time() * 1000) - _EPOCH_MS) << 12, self._last + 1)
            self._last = first + count - 1
        # The tag lies between the time and the count, so that order is that of time.
        return [
            ((n >> 12) << 22) | (self._tag << 12) | (n & 0xFFF) for n in range(first, first + count)
        ]


@dataclass(frozen=True, slots=True)
class Hashes:
    """What texts are found by."""

    salt: bytes

    def of(self, text: str) -> str:
        """32 hexadecimal digits; "" for ""."""
        if not text:
            return ""
        return hashlib.blake2b(text.encode(), key=self.salt, digest_size=_HASH_BYTES).hexdigest()

    def of_labels(self, labels: Labels) -> list[str]:
        """One for each label."""
        return [self.of(f"{key}\x1f{value}") for key, value in sorted(labels.items())]


def table_of(name: str) -> str:
    """What Milvus calls a collection: it takes letters, digits and "_" only."""
    return PREFIX + name.replace("_", "__").replace("-", "_m").replace(".", "_d")


def description_of(collection: Collection) -> str:
    """What Milvus keeps of a collection beside its faces."""
    facts = asdict(collection) | {"mien": 1}
    return json.dumps(facts, sort_keys=True)


def collection_of(description: str) -> Collection | None:
    """The collection of a description; None: it is not one of mien's."""
    try:
        facts = json.loads(description)
        embedder = ModelIdentity(**facts.pop("embedder"))
        return Collection(embedder=embedder, **facts) if facts.pop("mien") == 1 else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def schema_of(pymilvus: Any, dimensions: int, description: str) -> Any:
    """The fields of a collection."""
    kind = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=description
    )
    schema.add_field("id", kind.INT64, is_primary=True)
    schema.add_field("vector", kind.FLOAT_VECTOR, dim=dimensions)
    schema.add_field("person", kind.VARCHAR, max_length=_PERSON_BYTES)
    schema.add_field("person_hash", kind.VARCHAR, max_length=2 * _HASH_BYTES)
    schema.add_field("labels", kind.VARCHAR, max_length=_MAX_TEXT)
    schema.add_field(
        "label_hashes",
        kind.ARRAY,
        element_type=kind.VARCHAR,
        max_capacity=16,
        max_length=2 * _HASH_BYTES,
    )
    schema.add_field("request", kind.VARCHAR, max_length=2 * _HASH_BYTES)
    schema.add_field("quality", kind.VARCHAR, max_length=_MAX_TEXT)
    schema.add_field("norm", kind.DOUBLE)
    schema.add_field("created", kind.DOUBLE)
    return schema


def row_of(face: FaceRow, key: int, hashes: Hashes, created: float) -> dict[str, Any]:
    """A face as Milvus takes it."""
    request = bytes.fromhex(hashes.of(face.request_key)) or None
    who, labels, quality = face.person, face.labels, face.quality
    stored = StoredFace(key, who, labels, quality, request, face.norm, created, face.vector)
    return stored_row_of(stored, hashes)


def stored_row_of(face: StoredFace, hashes: Hashes) -> dict[str, Any]:
    """A face that was enrolled elsewhere as Milvus takes it."""
    return {
        "id": face.key,
        "vector": face.vector,
        "person": face.person,
        "person_hash": hashes.of(face.person),
        "labels": json.dumps(dict(face.labels), ensure_ascii=False) if face.labels else "",
        "label_hashes": hashes.of_labels(face.labels),
        "request": face.request.hex() if face.request else "",
        "quality": json.dumps(asdict(face.quality)) if face.quality else "",
        "norm": face.norm,
        "created": face.created,
    }


def face_of(row: Mapping[str, Any]) -> EnrolledFace:
    """A face as Milvus gives it, of `FACE_FIELDS`."""
    quality = Quality(**json.loads(row["quality"])) if row["quality"] else None
    return EnrolledFace(row["id"], row["person"], labels_of(row), quality, row["created"])


def labels_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The labels of a face."""
    labels: dict[str, str] = json.loads(row["labels"]) if row["labels"] else {}
    return labels


def vectors_of(rows: Sequence[Mapping[str, Any]], dimensions: int) -> ArrayF32:
    """The vectors of faces: [n, d]."""
    vectors = np.array([row["vector"] for row in rows], np.float32)
    return vectors.reshape(len(rows), dimensions)


def search_filter(hashes: Hashes, labels: Labels) -> str:
    """Faces of persons that have all of the labels."""
    if not labels:
        return 'person_hash != ""'
    wanted = json.dumps(hashes.of_labels(labels))
    return f'person_hash != "" and array_contains_all(label_hashes, {wanted})'
