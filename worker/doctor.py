"""`sag-worker doctor`: what is missing here, and its fix. Servers, device, models and memory."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from worker import gpu, model_files, servers
from worker.finding import Finding, no_extra
from worker.model_spec import is_hub_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.model_spec import ModelSpec
    from worker.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at Redis, S3, the device and the models; ends whether they answer or not."""
    yield from servers.redis(settings)
    yield from servers.s3(settings)
    yield _device(settings)
    yield from models(settings)


def _device(settings: Settings) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return no_extra("device", "torch")
    try:
        device, gpus = gpu.resolve(settings.device), gpu.list_gpus()
    except RuntimeError as error:
        return Finding("device", ok=False, found=str(error), fix="repair the driver")
    if device == "cpu":
        return Finding("device", ok=True, found="the CPU; offload is not used")
    listed = ", ".join(f"{each.name} with {each.memory_mib} MiB" for each in gpus) or "no GPU"
    if int(device.partition(":")[2]) >= len(gpus):
        fix = "name one that nvidia-smi lists, or set SAG_DEVICE=cpu"
        return Finding("device", ok=False, found=f"{device} of {listed}", fix=fix)
    import torch  # noqa: PLC0415  # only where a GPU is to be used

    fix = "install a torch that is built for CUDA, and a driver that is new enough for it"
    ok = torch.cuda.is_available()
    return Finding("device", ok=ok, found=f"{device}: {listed}; torch {torch.__version__}", fix=fix)


def models(settings: Settings) -> Iterator[Finding]:
    """The files of each model, and whether its weights fit into the GPU."""
    if importlib.util.find_spec("safetensors") is None:
        yield no_extra("models", "safetensors")
        return
    smallest = _smallest(settings.device)
    for alias, spec in settings.specs.items():
        folder, what = Path(spec.path), f"model {alias}"
        if folder.is_dir():
            files = model_files.look(folder, safety_checker=spec.safety_checker)
            found = f"{folder}: {'; '.join(files.faults) or 'every file is there'}"
            fix = "bring the files, or point SAG_MODELS at a folder in diffusers' layout"
            yield Finding(what, ok=not files.faults, found=found, fix=fix)
            whole = not files.faults and settings.offload != "sequential"
            if smallest is not None and whole:
                yield memory(what, files.numbers, spec.dtype, settings.offload, smallest)
        elif is_hub_id(spec.path):
            free_gib = shutil.disk_usage(Path.home()).free / 2**30
            found = f"{spec.path} from the hub or its cache; {free_gib:.0f} GiB free"
            yield Finding(what, ok=True, found=found)
        else:
            fix = "set its path in SAG_MODELS to a folder on this machine or a hub id (owner/name)"
            yield Finding(what, ok=False, found=f"{spec.path} is not there", fix=fix)
        yield from _additions(what, spec)


def _additions(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """LoRA and words that are nowhere."""
    for path in [each.path for each in spec.lora] + [each.path for each in spec.textual_inversion]:
        if not Path(path).exists() and not is_hub_id(path):
            fix = "set its path in SAG_MODELS to a file on this machine or a hub id (owner/name)"
            yield Finding(what, ok=False, found=f"{path} is not there", fix=fix)


def _smallest(device: str) -> gpu.Gpu | None:
    """Of the GPUs that `device` may mean, the one with the least memory."""
    try:
        resolved, gpus = gpu.resolve(device), gpu.list_gpus()
    except RuntimeError:  # told of the device
        return None
    if resolved == "cpu":
        return None
    if device != "auto":
        index = int(resolved.partition(":")[2])
        gpus = gpus[index : index + 1]
    return min(gpus, key=lambda each: each.memory_mib or 0, default=None)


def memory(
    what: str, numbers: Mapping[str, int], dtype: str, offload: str, smallest: gpu.Gpu
) -> Finding:
    """Whether a model's weights fit into a GPU: never is a fault, not just now a remark."""
    dtype = "float16" if dtype == "auto" else dtype
    need_mib = model_files.weights_bytes(numbers, dtype, offload) / 2**20
    told = f"{need_mib:.0f} MiB of weights at once in {dtype}; {smallest.name} "
    if smallest.memory_mib is None:
        found = f"{told}does not tell its memory, so not compared"
        return Finding(f"{what} memory", ok=True, found=found)
    free_mib = smallest.memory_mib if smallest.free_mib is None else smallest.free_mib
    found = f"{told}has {smallest.memory_mib} MiB, {free_mib} free"
    if free_mib < need_mib <= smallest.memory_mib:
        found += ": no room beside what is on it now, unless that is this worker"
    smaller = "model" if offload == "none" else "sequential"
    fix = f"set SAG_OFFLOAD={smaller}, or take a GPU with more memory"
    ok = need_mib <= smallest.memory_mib
    return Finding(f"{what} memory", ok=ok, found=found, fix=fix)
