import ctypes
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from mien_server.backends import devices
from mien_server.backends.devices import (
    CpuDevice,
    CudaDevice,
    DeviceError,
    available_cores,
    cgroup_quota,
    device_names,
    gpu_count,
    gpu_remedy,
)
from mien_server.scheduling.interface import Device


def test_cores_are_granted_to_the_calling_thread_only() -> None:
    device: Device = CpuDevice(4)
    both_set = threading.Barrier(2, timeout=10)
    seen: dict[int, int] = {}

    def run(cores: int) -> None:
        device.begin(cores)
        both_set.wait()
        seen[cores] = torch.get_num_threads()

    before = torch.get_num_threads()
    threads = [threading.Thread(target=run, args=(cores,)) for cores in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == {1: 1, 3: 3}
    assert torch.get_num_threads() == before


def test_a_thread_may_get_more_and_fewer_cores_from_batch_to_batch() -> None:
    device = CpuDevice(2)
    seen: list[int] = []

    def run() -> None:
        for cores in (2, 1, 2):
            device.begin(cores)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [2, 1, 2]


def test_the_cpu_has_an_executor_per_core_of_its_budget_and_one_more() -> None:
    device = CpuDevice(3)
    assert (device.name, device.executors, device.cores) == ("cpu", 4, 3)
    assert CpuDevice().cores == available_cores()


def test_a_budget_without_cores_is_refused() -> None:
    with pytest.raises(DeviceError, match="at least 1, not 0"):
        CpuDevice(0)


def test_available_cores_respect_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 2.5),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b\n", 1.5),
        ({"cpu.max": "50000 100000"}, "0::/outside/the/namespace\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", None),
        (
            {"cpu/d/cpu.cfs_quota_us": "300000", "cpu/d/cpu.cfs_period_us": "100000"},
            "4:memory:/m\n3:cpu,cpuacct:/d\n",
            3.0,
        ),
    ],
)
def test_the_tightest_cgroup_quota_counts(
    tmp_path: Path, files: dict[str, str], membership: str, quota: float | None
) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "self").write_text(membership)
    assert cgroup_quota(root, tmp_path / "self") == quota


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "absent") is None


def test_an_instance_group_on_the_cpu_names_it() -> None:
    assert device_names("cpu") == ["cpu"]


def test_an_instance_group_without_gpus_names_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_names("gpu") == ["cuda:0", "cuda:1"]


def test_an_instance_group_names_its_gpus() -> None:
    assert device_names("gpu", [2, 0]) == ["cuda:2", "cuda:0"]


def test_an_absent_gpu_is_refused_by_name_with_what_there_is_and_the_fix() -> None:
    with pytest.raises(DeviceError) as caught:
        CudaDevice(97)
    message = str(caught.value)
    assert "no cuda:97" in message
    assert f"torch {torch.__version__}" in message
    assert "KIND_CPU" in message


@pytest.mark.parametrize(
    ("cuda", "count", "remedy"),
    [
        (None, 0, "is built without CUDA; install a CUDA build of torch"),
        ("12.8", 0, "sees no GPU; check the NVIDIA driver"),
        ("12.8", 2, "sees cuda:0, cuda:1; correct gpus"),
    ],
)
def test_the_remedy_fits_what_torch_sees(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, count: int, remedy: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert remedy in gpu_remedy()


def test_without_pytorch_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_pytorch", lambda: False)
    assert "PyTorch is not installed" in gpu_remedy()
    assert "pip install" in gpu_remedy()
    assert "KIND_CPU" in gpu_remedy()


def test_a_driver_without_pytorch_gives_no_gpu_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(devices, "has_pytorch", lambda: False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)  # the driver is there
    devices._say_that_gpus_are_idle.cache_clear()
    assert [gpu_count(), gpu_count()] == [0, 0]
    assert caplog.text.count("its GPUs are not used: PyTorch is not installed") == 1


def test_every_gpu_of_a_machine_without_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="asks for every GPU: "):
        device_names("gpu")
