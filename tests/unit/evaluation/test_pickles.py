"""A pickle is read without running anything of it."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.evaluation.pickles import PickleRefused, read_pickle


class _Calls:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bytes_booleans_and_arrays_of_integers_come_back_from_every_protocol(protocol: int) -> None:
    crop = np.frombuffer(b"encoded", np.uint8)
    labels = [True, False, np.bool_(True), np.int64(1)]
    crops, same = _read(pickle.dumps(([b"jpeg", b"", crop], labels), protocol))
    assert crops[:2] == [b"jpeg", b""]
    np.testing.assert_array_equal(crops[2], crop)
    assert list(map(int, same)) == [1, 0, 1, 1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_their_shape_and_order(protocol: int, order: Any) -> None:
    value = np.asarray(np.arange(12, dtype=">i4").reshape(3, 4), order=order)
    np.testing.assert_array_equal(_read(pickle.dumps([value], protocol))[0], value)


def test_strings_of_python_2_are_bytes() -> None:
    assert _read(b"(lp0\nS'jpeg\\xff'\np1\na.") == [b"jpeg\xff"]


def test_a_call_of_anything_else_is_refused_and_not_made(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    calls = [
        _Calls(os.system, f"touch {mark}"),
        _Calls(eval, f"open({str(mark)!r}, 'w')"),
        _Calls(Path.touch, mark),
        np.array([_Calls(os.system, f"touch {mark}")], object),
    ]
    for call in calls:
        for value in (call, [call], ([b"jpeg", call], [True])):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(PickleRefused, match="and only lists"):
                    _read(pickle.dumps(value, protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps([b"jpeg"])[:-3],
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'12345678'\ntR.",
        pickle.dumps([np.array([1.5])]),
        pickle.dumps([np.array([b"x"], object)]),
        pickle.dumps(np.zeros(2, [("a", "i4")])),
    ],
)
def test_a_damaged_or_other_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(PickleRefused):
        _read(data)
