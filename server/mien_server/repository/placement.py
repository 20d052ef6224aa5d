"""Which devices a model's `instance_group`s put it on."""

from collections.abc import Collection, Sequence

from mien_server.backends.devices import (
    CpuDevice,
    CudaDevice,
    DeviceError,
    device_names,
    gpu_remedy,
)
from mien_server.repository.config.model import InstanceGroup

AnyDevice = CpuDevice | CudaDevice


def place(
    groups: Sequence[InstanceGroup], devices: Sequence[AnyDevice]
) -> list[tuple[AnyDevice, int]]:
    """The devices that a model runs on, each with the number of batches at once, at least 1.

    Groups on the same device add up. A device that is asked for and absent is an error: nothing falls
    back to the processor in silence.

    Raises:
        DeviceError: names the device, and those there are.
    """
    by_name = {device.name: device for device in devices}
    counts: dict[str, int] = {}
    for group in groups:
        for name in _names(group, by_name):
            if name not in by_name:
                message = f"instance_group asks for {name}; this server has "
                message += ", ".join(by_name) or "none"
                raise DeviceError(message if name == "cpu" else f"{message}: {gpu_remedy()}")
            counts[name] = counts.get(name, 0) + (group.count or by_name[name].executors)
    return [(by_name[name], count) for name, count in counts.items()]


def _names(group: InstanceGroup, known: Collection[str]) -> list[str]:
    if group.kind == "auto" and not group.gpus:
        return [name for name in known if name.startswith("cuda:")] or ["cpu"]
    return device_names("cpu" if group.kind == "cpu" else "gpu", group.gpus)
