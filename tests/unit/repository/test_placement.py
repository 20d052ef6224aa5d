"""instance_group: where a model runs, and that nothing falls back in silence."""

from typing import cast

import pytest

from mien_server.backends.devices import DeviceError
from mien_server.repository.config.model import InstanceGroup
from mien_server.repository.placement import AnyDevice, place


class FakeDevice:
    """A device by its name: GPUs are not there to be tested with."""

    def __init__(self, name: str, executors: int) -> None:
        self.name = name
        self.executors = executors


CPU = cast("AnyDevice", FakeDevice("cpu", 4))
GPUS = [cast("AnyDevice", FakeDevice(f"cuda:{index}", 2)) for index in range(2)]


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ([InstanceGroup("auto")], [CPU], [("cpu", 4)]),
        ([InstanceGroup("auto")], [CPU, *GPUS], [("cuda:0", 2), ("cuda:1", 2)]),
        ([InstanceGroup("auto", 1)], [CPU, *GPUS], [("cuda:0", 1), ("cuda:1", 1)]),
        ([InstanceGroup("auto", 1, (1,))], [CPU, *GPUS], [("cuda:1", 1)]),
        ([InstanceGroup("cpu", 3)], [CPU, *GPUS], [("cpu", 3)]),
        ([InstanceGroup("gpu", 1, (0,))], [CPU, *GPUS], [("cuda:0", 1)]),
        ([InstanceGroup("cpu", 1), InstanceGroup("cpu", 2)], [CPU], [("cpu", 3)]),
        (
            [InstanceGroup("cpu", 1), InstanceGroup("gpu", 2, (0,))],
            [CPU, *GPUS],
            [("cpu", 1), ("cuda:0", 2)],
        ),
    ],
)
def test_groups_become_devices_and_counts(
    groups: list[InstanceGroup], devices: list[AnyDevice], expected: list[tuple[str, int]]
) -> None:
    assert [(device.name, count) for device, count in place(groups, devices)] == expected


@pytest.mark.parametrize(
    ("group", "devices", "missing"),
    [
        (InstanceGroup("gpu", 1, (7,)), [CPU, *GPUS], "cuda:7"),
        (InstanceGroup("auto", 1, (7,)), [CPU], "cuda:7"),
        (InstanceGroup("cpu"), GPUS, "cpu"),
    ],
)
def test_absent_device_is_an_error_that_names_it(
    group: InstanceGroup, devices: list[AnyDevice], missing: str
) -> None:
    with pytest.raises(DeviceError, match=f"asks for {missing}; this server has "):
        place([group], devices)
