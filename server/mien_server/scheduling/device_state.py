"""What of a device is free."""

from mien_server.scheduling.interface import Device


class DeviceState:
    """A device's executors and cores that are free.

    Attributes:
        idle: executors without a batch.
        free_cores: cores that no batch has been granted.
        fair_floor: the least share of the device that a slot with work waiting has had; never falls.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.idle = device.executors
        self.free_cores = device.cores
        self.fair_floor = 0.0

    @property
    def capacity(self) -> int:
        """How many units (cores, or executors of a GPU) work at the same time."""
        return self.device.cores or self.device.executors
