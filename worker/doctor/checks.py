"""All checks of `sag-worker doctor`: servers, device, model files and GPU memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from worker import devices
from worker.config.models import is_hub_id
from worker.doctor import servers
from worker.doctor.family import check_family
from worker.doctor.finding import Finding, missing_extra
from worker.doctor.hub import check_hub
from worker.doctor.lora import check_loras
from worker.doctor.model_path import MISSING_PATH_FIX, check_path
from worker.doctor.unet import check_unet
from worker.engine.loading.compiler import FIX, missing_compiler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.config.models import ModelSpec
    from worker.config.settings import Settings
    from worker.engine.loading.model_files import ModelFiles

_MEMORY_FIX = {
    "none": "set SAG_OFFLOAD=model, or use a GPU with more memory",
    "model": "set SAG_OFFLOAD=sequential, or use a GPU with more memory",
    "swap": "set SAG_OFFLOAD=sequential, or use a GPU with more memory",
    "auto": "set SAG_OFFLOAD=sequential, or use a GPU with more memory",
    "sequential": "use a GPU with more memory",
}


def run_checks(settings: Settings) -> Iterator[Finding]:
    """Check Redis, S3, the device and the models; every check has a time limit."""
    yield from servers.check_redis(settings)
    yield from servers.check_s3(settings)
    if importlib.util.find_spec("torch") is None:
        yield missing_extra("device and models", "torch")
        return
    gpus: list[devices.Gpu] = []
    try:
        devices.use_pci_order(settings.device)
        gpus = devices.list_gpus()
    except (RuntimeError, ValueError) as error:
        fix = "repair the driver, or what CUDA_VISIBLE_DEVICES names and CUDA_DEVICE_ORDER means"
        yield Finding("device", ok=False, found=str(error), fix=fix)
    else:
        yield _check_device(settings, gpus)
        if settings.compile:
            yield _check_compiler(devices.resolve(settings.device, gpus))
    yield from check_models(settings, gpus)


def _check_device(settings: Settings, gpus: Sequence[devices.Gpu]) -> Finding:
    device = devices.resolve(settings.device, gpus)
    if device == "cpu":
        return Finding("device", ok=True, found="the CPU; SAG_OFFLOAD has no effect")
    listed = ", ".join(f"{gpu.name} with {gpu.memory_mib} MiB" for gpu in gpus) or "no GPU"
    if int(device.partition(":")[2]) >= len(gpus):
        fix = "name a GPU that the driver lists, or set SAG_DEVICE=cpu"
        return Finding("device", ok=False, found=f"{device} of {listed}", fix=fix)
    import torch  # noqa: PLC0415  # only where a GPU is to be used

    fix = "install a torch that is built for CUDA, and a driver that is new enough for it"
    ok = torch.cuda.is_available()
    return Finding("device", ok=ok, found=f"{device}: {listed}; torch {torch.__version__}", fix=fix)


def _check_compiler(device: str) -> Finding:
    missing = missing_compiler(device)
    return Finding("compiler", ok=missing is None, found=missing or "found", fix=FIX)


def check_models(settings: Settings, gpus: Sequence[devices.Gpu] = ()) -> Iterator[Finding]:
    """Check the files of each model, and whether its weights fit into the smallest GPU."""
    smallest = _smallest(settings.device, gpus)
    for alias, spec in settings.specs.items():
        what = f"model {alias}"
        try:
            yield from _check_model(what, spec, settings.offload, smallest)
            yield from check_family(what, spec)
            yield from check_unet(what, spec)
            yield from _check_additions(what, spec)
        except OSError as error:
            fix = (
                "let this user read it, or set SAG_MODELS, or HF_HOME for the hub, to another path"
            )
            yield Finding(what, ok=False, found=f"cannot be read: {error}", fix=fix)


def _check_model(
    what: str, spec: ModelSpec, offload: str, smallest: devices.Gpu | None
) -> Iterator[Finding]:
    findings, files = check_path(what, spec)
    yield from findings
    if smallest is not None and files is not None and not files.faults:
        yield check_memory(what, files, spec.dtype, offload, smallest)


def _check_additions(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """Report LoRA and textual inversions that are missing, and LoRA that is not served."""
    yield from check_loras(what, spec)
    loras = (*spec.lora, *spec.adapters.values())
    for path in [each.path for each in loras] + [each.path for each in spec.textual_inversion]:
        if Path(path).exists():
            continue
        if is_hub_id(path):
            yield check_hub(f"{what} hub", spec, path)
        else:
            found = f"{path} is not there"
            yield Finding(what, ok=False, found=found, fix=MISSING_PATH_FIX)


def _smallest(device: str, gpus: Sequence[devices.Gpu]) -> devices.Gpu | None:
    """Return the GPU with the least memory among those that `device` may stand for."""
    resolved = devices.resolve(device, gpus)
    if resolved == "cpu":
        return None
    if device != "auto":
        index = int(resolved.partition(":")[2])
        gpus = gpus[index : index + 1]
    return min(gpus, key=lambda gpu: gpu.memory_mib or 0, default=None)


def check_memory(
    what: str, files: ModelFiles, dtype: str, offload: str, gpu: devices.Gpu
) -> Finding:
    """Compare a model's weights with a GPU's memory; too little free memory is only mentioned."""
    dtype = "float16" if dtype == "auto" else dtype
    need_mib = files.weights_bytes(dtype, offload) / 2**20
    all_mib = files.weights_bytes(dtype, "none") / 2**20
    need = f"{need_mib:.0f} MiB of weights at once in {dtype}"
    if offload != "none":
        need += f", {all_mib:.0f} MiB in all"
    if gpu.memory_mib is None:
        found = f"{need}; {gpu.name} does not report its memory, so not compared"
        return Finding(f"{what} memory", ok=True, found=found)
    free_mib = gpu.memory_mib if gpu.free_mib is None else gpu.free_mib
    found = f"{need}; {gpu.name} has {gpu.memory_mib} MiB, {free_mib} free"
    if free_mib < need_mib <= gpu.memory_mib:
        found += ": too little free memory, unless a running worker uses it"
    elif need_mib < all_mib and need_mib <= gpu.memory_mib:
        fits = "fit" if all_mib <= free_mib else "do not fit"
        found += f": all parts {fits} together, before what the calls need"
    return Finding(
        f"{what} memory", ok=need_mib <= gpu.memory_mib, found=found, fix=_MEMORY_FIX[offload]
    )
