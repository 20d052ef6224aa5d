import logging

import pytest

from mien_server.backends.precision import Precision, cpu_multiplies_bf16, resolve_precision
from mien_server.backends.weights_file import LoadError


@pytest.mark.parametrize(
    ("wanted", "device", "native_bf16", "resolved"),
    [
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cpu", True, "bf16"),
        ("fp16", "cuda", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cuda", False, "bf16"),
    ],
)
def test_precision(wanted: Precision, device: str, native_bf16: bool, resolved: str) -> None:
    assert resolve_precision(wanted, device, native_bf16=native_bf16) == resolved


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(LoadError, match="precision fp16 needs a GPU"):
        resolve_precision("fp16", "cpu", native_bf16=True)


def test_emulated_bf16_is_allowed_but_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("bf16", "cpu", native_bf16=False) == "bf16"
    assert "emulates bfloat16" in caplog.text


def test_the_processor_is_asked_as_the_kernel_reports_it() -> None:
    with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a pseudo-file
        flags = file.read().split()
    assert cpu_multiplies_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
