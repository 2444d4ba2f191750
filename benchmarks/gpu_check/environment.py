"""Part: the device, its driver and the libraries."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

#: Share of the GPU's memory that others may hold before the numbers are doubtful.
BUSY_SHARE = 0.05


def run(setting: Setting, found: Finding) -> None:
    """Tell what is there; fails without the device."""
    if setting.on_gpu and not torch.cuda.is_available():
        message = "torch finds no CUDA device here; `--rehearse` runs every part on the CPU"
        raise RuntimeError(message)
    if setting.on_gpu:
        torch.zeros(1, device=setting.device)  # the driver may list a GPU that can't be used
    machine = record.machine(setting.device)
    found.headline(machine.line)
    _rows(found, "processor", machine.cpu, cores=machine.cores, load_before=machine.load_before)
    _rows(
        found,
        "libraries",
        f"torch {machine.torch}, diffusers {machine.diffusers}, transformers "
        f"{machine.transformers}, Python {machine.python}",
    )
    if setting.on_gpu:
        _gpu(setting, found)
    else:
        found.note("Driver, clocks and memory: only on a GPU.")


def _rows(found: Finding, name: str, value: object, **more: object) -> None:
    found.row(what=name, value=str(value))
    for each, other in more.items():
        found.row(what=each.replace("_", " "), value=str(other))


def _gpu(setting: Setting, found: Finding) -> None:
    properties = torch.cuda.get_device_properties(setting.device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(setting.device)
    _rows(
        found,
        "GPU",
        properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        CUDA_of_torch=torch.version.cuda,
        cuDNN=torch.backends.cudnn.version(),
        memory=f"{total_bytes / 2**30:.1f} GiB, {free_bytes / 2**30:.1f} GiB free",
    )
    found.number("memory_gib", total_bytes / 2**30)
    for name, value in _by_nvml():
        _rows(found, name, value)
    if total_bytes - free_bytes > BUSY_SHARE * total_bytes:
        found.note("Somebody else holds memory of this GPU: speeds may be disturbed.")


def _by_nvml() -> Iterator[tuple[str, object]]:
    """What NVML tells of the first GPU; nothing where it does not."""
    with suppress(Exception):  # the library, the driver or one of its answers is not there
        import pynvml  # noqa: PLC0415  # the worker extra

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        yield "driver", pynvml.nvmlSystemGetDriverVersion()
        asked: dict[str, Callable[[], Any]] = {
            "clock of the multiprocessors, MHz": lambda: pynvml.nvmlDeviceGetClockInfo(
                gpu, pynvml.NVML_CLOCK_SM
            ),
            "its maximum, MHz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "clock of the memory, MHz": lambda: pynvml.nvmlDeviceGetClockInfo(
                gpu, pynvml.NVML_CLOCK_MEM
            ),
            "power limit, W": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
            "temperature, °C": lambda: pynvml.nvmlDeviceGetTemperature(
                gpu, pynvml.NVML_TEMPERATURE_GPU
            ),
            "processes on it": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)),
        }
        for name, ask in asked.items():
            with suppress(pynvml.NVMLError):
                yield name, ask()
