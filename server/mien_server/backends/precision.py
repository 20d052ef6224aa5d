"""Which number format a model computes in."""

import logging
from pathlib import Path
from typing import Literal

from mien_server.backends.weights_file import LoadError

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
ResolvedPrecision = Literal["fp32", "bf16", "fp16"]
"""What networks in PyTorch compute in."""

_CPUINFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)


def resolve_precision(
    wanted: Precision, device_type: str, *, native_bf16: bool
) -> ResolvedPrecision:
    """What "auto" means for a network in PyTorch on a device, and whether that can do what is wanted.

    Args:
        wanted: `precision` of config.pbtxt.
        device_type: "cpu" or "cuda".
        native_bf16: whether the CPU multiplies bfloat16; see `cpu_multiplies_bf16`.

    Raises:
        LoadError: fp16 on a CPU, where it would be slower than fp32; or int8.
    """
    if wanted == "int8":
        raise LoadError(
            "precision int8 needs quantised weights on backend onnxruntime: make them with"
            " `mien-server models quantize`"
        )
    if wanted == "auto":
        if device_type == "cuda":
            return "fp16"
        return "bf16" if native_bf16 else "fp32"
    if device_type == "cpu":
        if wanted == "fp16":
            raise LoadError("precision fp16 needs a GPU: set auto, bf16 or fp32, or kind: KIND_GPU")
        if wanted == "bf16" and not native_bf16:
            _log.warning("this processor emulates bfloat16: precision fp32 would be faster")
    return wanted


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 multiplication, as far as Linux says."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags
