"""Reads what PyTorch has written, and tensors for it: the part of `formats` that needs PyTorch."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mien_server.weights.errors import AGAIN, WeightsError


def read_torch(path: Path, *, mmap: bool) -> Mapping[Any, Any]:
    """What a file of `torch.save` holds; nothing of it is executed.

    Args:
        mmap: whether it has the format of PyTorch 1.6 and later, whose tensors need not be copied.

    Raises:
        WeightsError: it is damaged, holds something else, or needs code to be run.
        OSError: it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the file, for its publisher
        return _load_torch(path, mmap=mmap)


def _load_torch(path: Path, *, mmap: bool) -> Mapping[Any, Any]:
    try:
        if mmap and path.suffix != ".safetensors":
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # by its handle, because PyTorch goes by the name of a file that it opens itself
            with path.open("rb") as file:
                contents = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the reader of a hostile file may fail in any way
        raise WeightsError(_explain(path, error)) from error
    if isinstance(contents, torch.Tensor):
        contents = {"": contents}
    if not isinstance(contents, Mapping):
        raise WeightsError(
            f"{path.name} holds a {type(contents).__name__}, must hold a state_dict: torch.save the"
            " network's state_dict()"
        )
    return contents


def _explain(path: Path, error: Exception) -> str:
    reasons = [part.strip() for part in str(error).split("\n\n") if part.strip()]
    if isinstance(error, pickle.UnpicklingError) and len(reasons) > 1:
        # PyTorch names what it would not import or call; what it recommends instead is to run it.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        return (
            f"{path.name} is a pickle that can only be read by running code"
            f" ({refused[1] if refused else reasons[1]}); nothing of it was executed. Get the plain"
            " state_dict from its publisher; where you trust the file, load it in a program of your own"
            " and torch.save the network's state_dict()"
        )
    first = (reasons or [type(error).__name__])[0].splitlines()[0]
    return f"{path.name} cannot be read as a PyTorch checkpoint ({first}): {AGAIN}"


def read_safetensors(path: Path) -> Mapping[Any, Any]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path.name} cannot be read as safetensors ({error}): {AGAIN}"
        ) from error
