"""What callers may call their collections, persons, labels and requests."""

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from mien_server.errors import InvalidRequest, NotInGallery, Reason

_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FACE_ID = re.compile(r"[0-9a-f]{16}")

MAX_PERSON_BYTES = 256
MAX_LABELS = 16
MAX_LABEL_KEY_BYTES = 64
MAX_LABEL_VALUE_BYTES = 256
MAX_REQUEST_KEY_BYTES = 128
MAX_FACES_A_CALL = 64
"""That Enrol takes."""
MAX_FACE_IDS = 1000
MAX_PAGE = 1000
MAX_COLLECTIONS = 16
MAX_TOP_K = 100
MAX_REEMBEDDED = 10_000
DEFAULT_REEMBEDDED = 256
"""Faces that a call of Reembed embeds."""
DEFAULT_PAGE = 100
DEFAULT_TOP_K = 5


def check_collection_name(name: str) -> None:
    """Refuses what cannot be a new collection's name.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if not _COLLECTION.fullmatch(name):
        _refuse(
            "name",
            f"{name!r} is no name for a collection: it has 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', the"
            " first of them a letter or a digit",
        )


def check_person(name: str, field: str = "person_id") -> None:
    """Refuses what cannot be a person's id.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if not name:
        _refuse(field, "it is empty: say whose face it is")
    _check_text(name, field, MAX_PERSON_BYTES)


def check_labels(labels: Mapping[str, str], field: str = "labels") -> None:
    """Refuses labels that are too many or too long.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if len(labels) > MAX_LABELS:
        _refuse(field, f"there are {len(labels)}, more than {MAX_LABELS}")
    for key, value in labels.items():
        if not key:
            _refuse(field, "a key is empty")
        _check_text(key, field, MAX_LABEL_KEY_BYTES)
        _check_text(value, field, MAX_LABEL_VALUE_BYTES)


def check_request_key(key: str, field: str = "request_key") -> None:
    """Refuses a request key that is too long.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    _check_text(key, field, MAX_REQUEST_KEY_BYTES)


def check_count(count: int, most: int, field: str) -> None:
    """Refuses a number of things outside [1, most].

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if not 1 <= count <= most:
        _refuse(field, f"{count} is outside [1, {most}]")


def page_size(asked: int) -> int:
    """How many things a page has.

    Raises:
        InvalidRequest: INVALID_OPTION.
    """
    if not asked:
        return DEFAULT_PAGE
    check_count(asked, MAX_PAGE, "page_size")
    return asked


def face_key(face_id: str, collection: str, field: str = "face_id") -> int:
    """The key of a face by its id.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND, no face can have this id.
    """
    if not _FACE_ID.fullmatch(face_id) or int(face_id, 16) > 2**63 - 1:
        raise NotInGallery(
            Reason.ENROLLED_FACE_NOT_FOUND,
            f"Collection {collection!r} has no face {face_id!r}: ids have 16 hexadecimal digits.",
            field=field,
        )
    return int(face_id, 16)


def face_keys(face_ids: Sequence[str], collection: str) -> list[int]:
    """The keys of 1 to `MAX_FACE_IDS` faces, each once.

    Raises:
        InvalidRequest: INVALID_OPTION, there are none or too many. NotInGallery: as `face_key` says.
    """
    check_count(len(face_ids), MAX_FACE_IDS, "face_ids")
    ids = enumerate(face_ids)
    return list(dict.fromkeys(face_key(each, collection, f"face_ids[{i}]") for i, each in ids))


def _check_text(text: str, field: str, most: int) -> None:
    if (size := len(text.encode())) > most:
        _refuse(field, f"it has {size} bytes, more than {most}")
    if _CONTROL.search(text):
        _refuse(field, f"{text!r} has control characters")


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(Reason.INVALID_OPTION, f"{field}: {why}.", field=field)
