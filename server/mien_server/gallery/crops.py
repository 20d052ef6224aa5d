"""What the crops of a collection are kept for: to be looked at, and to be embedded by another model."""

import time
from typing import Any, cast

from mien_server.errors import Reason, Unmet
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.interface import CropStore, OpenCollection
from mien_server.gallery.reembedding import Anew
from mien_server.gallery.types import Reembedding
from mien_server.pipeline.running import together
from mien_server.pipeline.types import Call, ModelIdentity, ModelRef

_REEMBEDDED_AT_ONCE = 8
"""Crops that Reembed has in the pipeline: a batch, and few beside those of other callers."""


async def crop_of(gallery: Gallery, name: str, key: int) -> bytes:
    """The crop of a face: RGB of 112x112 pixels.

    Raises:
        Unmet: NO_CROPS. NotInGallery: COLLECTION_NOT_FOUND, ENROLLED_FACE_NOT_FOUND.
    """
    live, store = _keeping(gallery, name, "to look at")
    return await store.reader.crop(live, key)


async def reembed(
    gallery: Gallery, name: str, embedder: ModelRef, *, most: int, call: Call
) -> Reembedding:
    """Embeds some of the crops of a collection by another model; after the last, that is its model.

    What has been done is kept, also where the call's time ends before so many are.

    Args:
        name: of the collection.
        embedder: the other model. That of the collection itself: there is nothing left to do.
        most: faces to embed in this call, at least 1.

    Raises:
        Unmet: NO_CROPS. NotInGallery: COLLECTION_NOT_FOUND.
        GalleryFull: there is no room for the vectors of both.
        SchedulingError: why nothing could be computed.
    """
    live, store = _keeping(gallery, name, "to embed anew: enrol the photos in a new collection")
    identity, dimensions = await gallery.embedder(embedder)
    if identity.fingerprint == live.collection.embedder.fingerprint:
        return Reembedding(identity, live.faces, 0, swapped=True)
    left = await store.reembedded(live, identity.fingerprint, [])
    slowest = 0.0
    while left and most:
        began = time.monotonic()
        some = await store.reader.to_reembed(
            live, identity.fingerprint, min(most, _REEMBEDDED_AT_ONCE)
        )
        anew = await together(*(_anew(gallery, *each, identity, call) for each in some))
        left = await store.reembedded(live, identity.fingerprint, anew)
        most -= len(some)
        slowest = max(slowest, time.monotonic() - began)
        if call.deadline is not None and time.monotonic() + 2 * slowest > call.deadline:
            break
    swapped = not left and await store.swap(live, identity, dimensions)
    return Reembedding(identity, live.faces - left, left, swapped)


async def _anew(
    gallery: Gallery, face: int, crop: bytes, embedder: ModelIdentity, call: Call
) -> Anew:
    """A face of a kept crop by another model."""
    embedding = await gallery.embed_crop(crop, embedder, call)
    return Anew(face, embedding.values, embedding.norm)


def _keeping(gallery: Gallery, name: str, what_for: str) -> tuple[OpenCollection, CropStore[Any]]:
    """A collection that keeps crops, and its store."""
    live = gallery.store.find(name)
    if not live.collection.keeps_crops:
        raise Unmet(
            Reason.NO_CROPS, f"Collection {name!r} keeps no crops {what_for}.", field="collection"
        )
    return live, cast(CropStore[Any], gallery.store)  # no other one makes such collections
