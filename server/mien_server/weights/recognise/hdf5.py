"""Reads the arrays of an HDF5 file as Keras wrote them, without HDF5's library: as data, and nothing else.

What is known: files of the first layout (superblock 0, groups as B-trees of symbol tables), and float32
arrays that lie in one piece. All other files are refused. The format is documented by The HDF Group, "HDF5
File Format Specification Version 3.0".
"""

import math
import struct
from collections.abc import Iterator

import numpy as np

from mien_server.models.interface import ArrayF32
from mien_server.weights.errors import WeightsError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ROOT = 56
"""Where the entry of the root group is."""
_DATASPACE, _DATATYPE, _LAYOUT, _CONTINUATION, _GROUP = 0x01, 0x03, 0x08, 0x10, 0x11
_FLOAT32 = (1, 4)
_CONTIGUOUS = (3, 1)
_MOST_PARTS = 10_000
"""Groups, arrays and messages in a file: a file that leads in circles has no end of them."""


def read_arrays(data: bytes) -> dict[str, ArrayF32]:
    """The float32 arrays of a file by their paths, "model_weights/conv2d_1/kernel:0"; others are left out.

    Raises:
        WeightsError: it is no HDF5 file that can be read here, or a damaged one.
    """
    if data[:9] != _SIGNATURE + b"\0" or data[13:15] != b"\x08\x08":
        raise WeightsError("it is no HDF5 file of the kind that Keras writes")
    reader = _Reader(data)
    try:
        _, header = reader.unpack("<QQ", _ROOT)
        return dict(reader.arrays("", header))
    except (struct.error, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise WeightsError(f"the HDF5 file is damaged ({error})") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parts = 0

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise ValueError("it has no end")
        return struct.unpack_from(layout, self._data, at)

    def arrays(self, path: str, header: int) -> Iterator[tuple[str, ArrayF32]]:
        """Those of the group, or the array, whose header is there."""
        messages = dict(self._messages(header))
        if _GROUP in messages:
            tree, heap = self.unpack("<QQ", messages[_GROUP])
            (names,) = self.unpack("<Q", heap + 24)
            for name, child in self._entries(tree):
                title = self._text(names + name)
                yield from self.arrays(f"{path}/{title}" if path else title, child)
        elif {_DATASPACE, _DATATYPE, _LAYOUT} <= messages.keys():
            yield from self._array(path, messages)

    def _array(self, path: str, messages: dict[int, int]) -> Iterator[tuple[str, ArrayF32]]:
        kind, size = self.unpack("<B3xI", messages[_DATATYPE])
        version, rank = self.unpack("<BB", messages[_DATASPACE])
        layout = self.unpack("<BB", messages[_LAYOUT])
        if (kind & 15, size) != _FLOAT32 or version != 1 or layout != _CONTIGUOUS:
            return
        shape = self.unpack(f"<{rank}Q", messages[_DATASPACE] + 8)
        start, length = self.unpack("<QQ", messages[_LAYOUT] + 2)
        if length != 4 * math.prod(shape) or start + length > len(self._data):
            raise ValueError(f"{path} has {length} bytes of data")
        values = np.frombuffer(self._data, "<f4", math.prod(shape), start)
        yield path, values.reshape(shape).astype(np.float32)

    def _messages(self, header: int) -> Iterator[tuple[int, int]]:
        """The messages of an object's header: of each the kind, and where its content is."""
        version, count, size = self.unpack("<BxH4xI", header)
        if version != 1:
            raise ValueError(f"an object's header has version {version}")
        blocks = [(header + 16, size)]
        while blocks and count:
            at, left = blocks.pop(0)
            while left >= 8 and count:
                kind, length = self.unpack("<HH", at)
                if kind == _CONTINUATION:
                    further, more = self.unpack("<QQ", at + 8)
                    blocks.append((further, more))
                yield kind, at + 8
                at, left, count = at + 8 + length, left - 8 - length, count - 1

    def _entries(self, node: int) -> Iterator[tuple[int, int]]:
        """What a group's tree leads to: of each the place of its name in the heap, and of its header."""
        if self._data[node : node + 4] == b"TREE":
            (count,) = self.unpack("<H", node + 6)
            for index in range(count):
                (child,) = self.unpack("<Q", node + 32 + 16 * index)
                yield from self._entries(child)
        elif self._data[node : node + 4] == b"SNOD":
            (count,) = self.unpack("<H", node + 6)
            for index in range(count):
                name, header = self.unpack("<QQ", node + 8 + 40 * index)
                yield name, header
        else:
            raise ValueError("a group's tree leads nowhere")

    def _text(self, at: int) -> str:
        return self._data[at : self._data.index(b"\0", at)].decode()
