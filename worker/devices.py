"""The GPUs that this process may use, from NVIDIA's driver (NVML). Knows no torch, starts no CUDA.

`CUDA_VISIBLE_DEVICES` means here what it means to CUDA.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.time_limit import call_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

#: How CUDA numbers GPUs, and the order of NVML and `nvidia-smi`; CUDA's own default puts the
#: fastest first, so that its indices differ from theirs where the GPUs do.
ORDER, PCI_ORDER = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
#: Longest wait for the driver, in seconds.
DRIVER_TIMEOUT_S = 30.0
_CPU_FILE = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of a GPU in MIG mode."""

    #: Of the GPU, in PCI order as `nvidia-smi` numbers them.
    index: int
    gpu_uuid: str
    name: str
    #: None where the driver does not report it, as for a GPU that shares the host's memory.
    memory_mib: int | None = None
    free_mib: int | None = None
    #: Of an instance: its number as `nvidia-smi -L` shows it, its own UUID, and its GPU instance
    #: and compute instance as `13/0`.
    mig_index: int | None = None
    mig_uuid: str = ""
    mig_ids: str = ""

    @property
    def uuid(self) -> str:
        """What `CUDA_VISIBLE_DEVICES` calls the device."""
        return self.mig_uuid or self.gpu_uuid

    @property
    def label(self) -> str:
        """Name of a worker process on the device."""
        return f"gpu{self.index}" + ("" if self.mig_index is None else f"-mig{self.mig_index}")


def use_pci_order(device: str) -> None:
    """Make CUDA number the GPUs as NVML does; call it before CUDA is initialised.

    Raises `ValueError` where the environment sets another order and an index names a GPU: `device`
    (`cuda`, `cuda:1`) or one in `CUDA_VISIBLE_DEVICES`. UUIDs mean the same in every order.
    """
    order = os.environ.setdefault(ORDER, PCI_ORDER)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if order == PCI_ORDER or device == "cpu" or names.startswith(("GPU-", "MIG-")):
        return
    if names or device != "auto":
        message = (
            f"{ORDER}={order} is not supported with indices of GPUs, which are those of nvidia-smi"
            f" here: unset it, or name the GPUs in CUDA_VISIBLE_DEVICES by UUID (nvidia-smi -L)"
        )
        raise ValueError(message)


def list_gpus() -> list[Gpu]:
    """Return the devices that this process may use; empty where there is no driver.

    Raises `RuntimeError` when the driver fails, when all GPUs are in MIG mode without instances,
    and when the UUIDs in `CUDA_VISIBLE_DEVICES` name no GPU or MIG instance: serving on the CPU
    instead would go unnoticed.
    """
    import pynvml  # noqa: PLC0415  # the worker extra

    try:
        gpus = call_within(DRIVER_TIMEOUT_S, _ask_driver)
    except pynvml.NVMLError_LibraryNotFound:
        return []
    except (pynvml.NVMLError, TimeoutError) as error:
        message = f"NVIDIA's driver fails: {error}; repair it, or set SAG_DEVICE=cpu"
        raise RuntimeError(message) from error
    if (value := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return gpus
    first = value.strip().partition(",")[0]
    if first.startswith("GPU-") and not any(gpu.gpu_uuid.startswith(first) for gpu in gpus):
        known = ", ".join(gpu.gpu_uuid for gpu in gpus) or "none"
        message = f"CUDA_VISIBLE_DEVICES={value} names no GPU; the driver lists {known}"
        raise RuntimeError(message)
    return visible(gpus, value)


def visible(gpus: Sequence[Gpu], value: str) -> list[Gpu]:
    """Return the devices that a value of `CUDA_VISIBLE_DEVICES` names, in its order.

    The first name determines the kind of all: UUIDs of GPUs or of MIG instances, else indices. As
    in CUDA, a UUID may be shortened while it is unique, the first name without a device ends the
    list, and a device named twice makes the list empty. The name of a GPU in MIG mode means all of
    its instances (CUDA itself would use one). Raises `RuntimeError` when a list with MIG instances
    is empty.
    """
    kind = value[:4]
    found: list[Gpu] = []
    for name in value.split(","):
        named = [gpu for gpu in gpus if _is_named(gpu, name, kind)]
        if len({gpu.gpu_uuid for gpu in named}) != 1:
            break
        if named[0] in found:
            found = []
            break
        found += named
    if not found and "MIG-" in value:
        known = ", ".join(gpu.mig_uuid for gpu in gpus if gpu.mig_uuid) or "none"
        message = f"CUDA_VISIBLE_DEVICES={value} names no MIG instance; the driver lists {known}"
        raise RuntimeError(message)
    return found


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware (AMX).

    Decided by its features and not by a measurement, so that all machines of a kind draw the same.
    """
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()


def resolve(device: str, gpus: Sequence[Gpu] | None = None) -> str:
    """The device for `auto` or `cuda`, others unchanged; `auto` asks the driver without `gpus`."""
    if device == "auto":
        return "cuda:0" if (list_gpus() if gpus is None else gpus) else "cpu"
    return "cuda:0" if device == "cuda" else device


def _cpuinfo() -> list[str]:
    """Return the lines of Linux's description of the processor; none elsewhere."""
    return _CPU_FILE.read_text().splitlines() if _CPU_FILE.exists() else []


def _is_named(gpu: Gpu, name: str, kind: str) -> bool:
    if kind == "GPU-":
        return name.startswith(kind) and gpu.gpu_uuid.startswith(name)
    if kind == "MIG-":
        uuid, _, ids = name.removeprefix(kind).partition("/")  # MIG-GPU-…/13/0, before R470
        return bool(gpu.mig_uuid) and (
            name == gpu.mig_uuid
            or (uuid.startswith("GPU-") and gpu.gpu_uuid.startswith(uuid) and ids == gpu.mig_ids)
        )
    # CUDA reads indices as C's strtol does: blanks before and anything behind are ignored.
    digits = re.match(r"\s*([+-]?\d+)", name, re.ASCII)
    return digits is not None and int(digits[1]) == gpu.index


def _ask_driver() -> list[Gpu]:
    """Return every device that the driver lists, in PCI order."""
    import pynvml  # noqa: PLC0415  # the worker extra

    pynvml.nvmlInit()
    try:
        count = pynvml.nvmlDeviceGetCount()
        gpus = [gpu for index in range(count) for gpu in _devices_of(index)]
    finally:
        pynvml.nvmlShutdown()
    if count and not gpus:
        message = (
            "every GPU is in MIG mode and has no instance; create one (nvidia-smi mig -cgi … -C),"
            " or set SAG_DEVICE=cpu"
        )
        raise RuntimeError(message)
    return gpus


def _devices_of(index: int) -> Iterator[Gpu]:
    """Yield a GPU, or its instances where it is in MIG mode."""
    import pynvml  # noqa: PLC0415  # the worker extra

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    try:
        is_mig, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        is_mig = False
    if not is_mig:
        yield Gpu(index, uuid, pynvml.nvmlDeviceGetName(handle), *_memory_mib(handle))
        return
    is_empty = True
    for mig_index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, mig_index)
        except pynvml.NVMLError_NotFound:  # instances need not be numbered without gaps
            continue
        is_empty = False
        gi = pynvml.nvmlDeviceGetGpuInstanceId(instance)
        ci = pynvml.nvmlDeviceGetComputeInstanceId(instance)
        name = pynvml.nvmlDeviceGetName(instance)
        mig_uuid = pynvml.nvmlDeviceGetUUID(instance)
        memory = _memory_mib(instance)
        yield Gpu(index, uuid, name, *memory, mig_index, mig_uuid, f"{gi}/{ci}")
    if is_empty:
        logger.warning("GPU %d (%s) is in MIG mode and has no instance: not used", index, uuid)


def _memory_mib(handle: Any) -> tuple[int | None, int | None]:  # noqa: ANN401  # NVML's own handle
    """Return total and free memory, None for both where the driver does not report it."""
    import pynvml  # noqa: PLC0415  # the worker extra

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        return None, None
    return memory.total >> 20, memory.free >> 20
