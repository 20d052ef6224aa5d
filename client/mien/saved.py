"""Embeddings that `mien embed --json` has written, read again."""

import json
from typing import Any

from mien.errors import InvalidRequest
from mien.results import Embedding

_SHOULD_BE = "what `mien embed PHOTO --json` prints"


def is_json(content: bytes) -> bool:
    """Whether this is no photo but a JSON document: no kind of picture begins like one."""
    return content.lstrip()[:1] in (b"{", b"[")


def saved_embedding(content: bytes, name: str) -> Embedding:
    """The embedding of a document of `mien embed`, of `Embedding.as_dict` or of `EmbedResult.as_dict`.

    Args:
        content: the file.
        name: its name, for errors.

    Raises:
        InvalidRequest: it holds no embedding, or several.
    """
    try:
        found: Any = json.loads(content)
        if isinstance(found, dict) and "faces" in found:
            found = found["faces"]
        if isinstance(found, list):
            if len(found) != 1:
                raise _invalid(f"{name} holds {len(found)} embeddings, and one is to be compared")
            (found,) = found
        return Embedding.from_dict(found)
    except KeyError as error:
        raise _invalid(
            f"{name} is no embedding, for it has no {error}; it should be {_SHOULD_BE}"
        ) from error
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise _invalid(f"{name} is no embedding ({error}); it should be {_SHOULD_BE}") from error


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_EMBEDDING")
