"""Reads a pickle of plain values and numpy arrays, and nothing else: nothing of it is executed.

A pickle names functions to call. Here the names of a short list stand for functions of this module, which
only build bytes and arrays of numbers; any other name is refused.
"""

import pickle
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_KINDS = "biu"
"""Booleans and integers, which pixels, encoded files and labels are made of."""


class PickleRefused(ValueError):
    """A pickle is damaged or holds something else; the message says what."""


def read_pickle(file: IO[bytes]) -> Any:
    """The value in a pickle of lists, tuples, bytes, text, numbers and numpy arrays of integers.

    Pickles of Python 2 are read too: their strings are bytes.

    Raises:
        PickleRefused: it is damaged, or holds or calls anything else.
        OSError: the file cannot be read.
    """
    try:
        return _plain(_Unpickler(file, encoding="bytes").load())
    except (PickleRefused, OSError):
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise PickleRefused(f"it is no pickle of plain values ({error})") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise PickleRefused(
                f"it names {module}.{name}, and only lists, bytes, booleans and numpy arrays of integers"
                " are read"
            ) from None


class _Type:
    """Stands for a `numpy.dtype` while it is rebuilt."""

    def __init__(self, code: object, *_: object) -> None:
        self._code = _text(code)
        self._order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = _text(state[1]).strip("|=")

    def resolve(self) -> np.dtype[Any]:
        dtype = np.dtype(self._order + self._code)
        if dtype.kind not in _KINDS:
            raise PickleRefused(f"it holds an array of {dtype}, and only integers are read")
        return dtype


class _Array:
    """Stands for a `numpy.ndarray` while it is rebuilt."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: _Type, shape: Any, order: Any) -> NDArray[Any]:
    flat = np.frombuffer(_encoded(data), dtype.resolve())
    filled: NDArray[Any] = flat.reshape(shape, order="F" if _text(order) == "F" else "C")
    return filled


def _scalar(dtype: _Type, data: Any) -> Any:
    return _filled(data, dtype, (1,), "C")[0]


def _encoded(data: Any, encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes as text to be encoded, where it writes for Python 2."""
    if encoding != "latin1":
        raise PickleRefused(f"it asks for the encoding {encoding!r}")
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):  # bytes(10**12) would be a lot of zeros
        raise PickleRefused(f"it holds {type(data).__name__} where bytes should be")
    return bytes(data)


def _empty() -> bytes:
    return b""


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_NUMPY_CORE = ("numpy.core", "numpy._core")
_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("_codecs", "encode"): _encoded,
        ("builtins", "bytes"): _empty,
        ("__builtin__", "bytes"): _empty,
        ("numpy", "dtype"): _Type,
        ("numpy", "ndarray"): _Array,
        **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _NUMPY_CORE},
        **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORE},
        **{(f"{core}.numeric", "_frombuffer"): _filled for core in _NUMPY_CORE},
    }
)


def _plain(value: Any) -> Any:
    """The value with its arrays in place of what rebuilt them, in the upper two levels."""
    if isinstance(value, list | tuple):
        return [
            [_unwrapped(item) for item in part]
            if isinstance(part, list | tuple)
            else _unwrapped(part)
            for part in value
        ]
    return _unwrapped(value)


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value
