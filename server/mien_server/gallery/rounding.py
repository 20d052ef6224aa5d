"""Vectors rounded to a byte a number, a quarter of the memory to keep and to read, and how far off that is.

A vector v is kept as whole numbers c in [-127, 127] and a scale s, the largest of |v| being 127 s, so that
v = s c + e. By Cauchy and Schwarz its product with a vector of unit length is off by at most |e|, which is
known when the vector is rounded: about 0.01 for an embedding of 512 numbers.
"""

import contextlib
import mmap
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.pipeline.types import ArrayF32

MIDDLE = 128
"""The byte of zero."""

_MOST = 127
_PAGE = 2 * 1024 * 1024
_SMALLEST = np.float32(1e-30)
_TINY = 1e-5


class Rounded(NamedTuple):
    """Vectors as bytes.

    Attributes:
        codes: [n, d] uint8: `MIDDLE` + c.
        scales: [n] float32: s.
        errors: [n] float32: how far off at most a product of `scales` * (`codes` - `MIDDLE`) with a vector of
            unit length is, computed in float32.
    """

    codes: NDArray[np.uint8]
    scales: ArrayF32
    errors: ArrayF32

    @classmethod
    def empty(cls, count: int, dimensions: int) -> "Rounded":
        """Room for so many. The system gives it memory as they are written."""
        codes = _bytes(count * dimensions).reshape(count, dimensions)
        return cls(codes, np.empty(count, np.float32), np.empty(count, np.float32))

    def at(self, rows: NDArray[np.int64]) -> "Rounded":
        """A copy of some of them."""
        return Rounded(self.codes[rows], self.scales[rows], self.errors[rows])

    def put(self, rows: slice, others: "Rounded") -> None:
        """Writes others over some of them."""
        self.codes[rows], self.scales[rows], self.errors[rows] = others

    @classmethod
    def joined(cls, parts: Sequence["Rounded"]) -> "Rounded":
        """A copy of several, at least one, as one."""
        codes, scales, errors = zip(*parts, strict=True)
        return cls(np.concatenate(codes), np.concatenate(scales), np.concatenate(errors))


def _bytes(count: int) -> NDArray[np.uint8]:
    """So many bytes, in large pages where the system has them, since a search reads all of them.

    What malloc gives was often another's before, page by page, and then it takes half as long again to read.
    """
    if count < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(count, np.uint8)
    room = mmap.mmap(-1, count + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # this system has none
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    start = -whole.ctypes.data % _PAGE
    return whole[start : start + count]


def rounded(vectors: ArrayF32) -> Rounded:
    """Vectors [n, d] as bytes."""
    dimensions = vectors.shape[1]
    scales = np.maximum(np.abs(vectors).max(axis=1) / _MOST, _SMALLEST)
    whole = vectors / scales[:, None]
    np.rint(whole, out=whole)
    left = whole * -scales[:, None]
    left += vectors
    # A sum of d products in float32 is off by d eps times the sum of their sizes at most, and this by
    # 255 times the square root of d.
    sums = scales * (255 * dimensions**1.5 * np.finfo(np.float32).eps)
    errors = np.sqrt(np.einsum("ij,ij->i", left, left)) + sums + _TINY
    whole += MIDDLE
    return Rounded(whole.astype(np.uint8), scales, errors.astype(np.float32))


def widened(codes: NDArray[np.uint8], out: ArrayF32) -> ArrayF32:
    """The bytes [n, d] as float32, in the first rows of `out` [n or more, d], whose numbers are finite."""
    wide = out[: len(codes)]
    if codes.size:
        # The running average of OpenCV in which the newest counts all: the quickest way from bytes to floats
        # that there is here, NumPy's takes twice as long.
        cv2.accumulateWeighted(codes, wide, 1.0)
    return wide
