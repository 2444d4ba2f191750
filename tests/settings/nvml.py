"""A fake of NVIDIA's driver library: the functions of `pynvml` that `worker.devices` calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

H100 = "NVIDIA H100 80GB HBM3"
NO_LIBRARY = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
BROKEN = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
_NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


@dataclass
class Device:
    """A GPU, or a MIG instance with its GPU and compute instance."""

    uuid: str
    name: str = H100
    memory_mib: int | None = 81559
    free_mib: int = 81004
    #: None where the GPU has no MIG mode; by index, None where there is a gap.
    instances: list[Device | None] | None = None
    ids: tuple[int, int] = (0, 0)
    mig_error: int = _NOT_SUPPORTED


@dataclass
class Driver:
    """What the driver has and how its calls fail, by the function's name."""

    gpus: list[Device] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=lambda: {"nvmlInit": NO_LIBRARY})
    starts: int = 0
    #: Called by `nvmlInit`; may hang.
    on_start: Callable[[], object] = lambda: None

    def has(self, *gpus: Device) -> None:
        """Be a driver that works."""
        self.gpus, self.errors = list(gpus), {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the functions of `pynvml`."""

        def fake(name: str, call: Callable[..., Any]) -> None:
            def called(*arguments: Any) -> Any:
                if name in self.errors:
                    raise pynvml.NVMLError(self.errors[name])
                return call(*arguments)

            monkeypatch.setattr(pynvml, name, called)

        fake("nvmlInit", self._start)
        fake("nvmlShutdown", lambda: None)
        fake("nvmlDeviceGetCount", lambda: len(self.gpus))
        fake("nvmlDeviceGetHandleByIndex", lambda index: self.gpus[index])
        fake("nvmlDeviceGetUUID", lambda device: device.uuid)
        fake("nvmlDeviceGetName", lambda device: device.name)
        fake("nvmlDeviceGetMemoryInfo", self._memory)
        fake("nvmlDeviceGetMigMode", self._mig_mode)
        fake("nvmlDeviceGetMaxMigDeviceCount", lambda device: len(device.instances))
        fake("nvmlDeviceGetMigDeviceHandleByIndex", self._instance)
        fake("nvmlDeviceGetGpuInstanceId", lambda device: device.ids[0])
        fake("nvmlDeviceGetComputeInstanceId", lambda device: device.ids[1])

    def _start(self) -> None:
        self.starts += 1
        self.on_start()

    @staticmethod
    def _memory(device: Device) -> SimpleNamespace:
        if device.memory_mib is None:
            raise pynvml.NVMLError(_NOT_SUPPORTED)
        return SimpleNamespace(total=device.memory_mib << 20, free=device.free_mib << 20)

    @staticmethod
    def _mig_mode(device: Device) -> list[int]:
        if device.instances is None:
            raise pynvml.NVMLError(device.mig_error)
        return [1, 1] if device.instances else [0, 1]  # an empty list: enabled after a reset

    @staticmethod
    def _instance(device: Device, index: int) -> Device:
        assert device.instances is not None
        if (found := device.instances[index]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found
