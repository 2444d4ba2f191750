"""`sag-worker doctor`: what is missing here, and its fix. Servers, device, models and memory."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from worker import devices
from worker.config.models import is_hub_id
from worker.doctor import model_files, servers
from worker.doctor.finding import Finding, no_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.config.models import ModelSpec
    from worker.config.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at Redis, S3, the device and the models; ends whether they answer or not."""
    yield from servers.redis(settings)
    yield from servers.s3(settings)
    gpus: list[devices.Gpu] = []
    try:
        gpus = devices.list_gpus()
    except RuntimeError as error:
        yield Finding("device", ok=False, found=str(error), fix="repair the driver")
    else:
        yield _device(settings, gpus)
    yield from models(settings, gpus)


def _device(settings: Settings, gpus: Sequence[devices.Gpu]) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return no_extra("device", "torch")
    device = devices.resolve(settings.device, gpus)
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


def models(settings: Settings, gpus: Sequence[devices.Gpu] = ()) -> Iterator[Finding]:
    """The files of each model, and whether its weights fit into the GPU."""
    if importlib.util.find_spec("safetensors") is None:
        yield no_extra("models", "safetensors")
        return
    smallest = _smallest(settings.device, gpus)
    for alias, spec in settings.specs.items():
        what = f"model {alias}"
        try:
            yield from _model(what, spec, settings.offload, smallest)
            yield from _additions(what, spec)
        except OSError as error:
            fix = (
                "let this user read it, or set SAG_MODELS, or HF_HOME for the hub, to another path"
            )
            yield Finding(what, ok=False, found=f"can't be looked at: {error}", fix=fix)


def _model(
    what: str, spec: ModelSpec, offload: str, smallest: devices.Gpu | None
) -> Iterator[Finding]:
    folder = Path(spec.path)
    if folder.is_dir():
        files = model_files.look(folder, safety_checker=spec.safety_checker)
        found = f"{folder}: {'; '.join(files.faults) or 'every file is there'}"
        fix = "bring the files, or point SAG_MODELS at a folder in diffusers' layout"
        yield Finding(what, ok=not files.faults, found=found, fix=fix)
        if smallest is not None and not files.faults and offload != "sequential":
            yield memory(what, files.numbers, spec.dtype, offload, smallest)
    elif is_hub_id(spec.path):
        place = _hub_cache()
        free_gib = shutil.disk_usage(place).free / 2**30
        found = f"{spec.path} from the hub or its cache; {free_gib:.0f} GiB free at {place}"
        yield Finding(what, ok=True, found=found)
    else:
        fix = "set its path in SAG_MODELS to a folder on this machine or a hub id (owner/name)"
        yield Finding(what, ok=False, found=f"{spec.path} is not there", fix=fix)


def _hub_cache() -> Path:
    """Where the hub's files are kept, or the nearest folder above it that is there already."""
    from huggingface_hub import constants  # noqa: PLC0415  # the worker extra

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return next(each for each in (cache, *cache.parents) if each.exists())


def _additions(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """LoRA and words that are nowhere."""
    for path in [each.path for each in spec.lora] + [each.path for each in spec.textual_inversion]:
        if not Path(path).exists() and not is_hub_id(path):
            fix = "set its path in SAG_MODELS to a file on this machine or a hub id (owner/name)"
            yield Finding(what, ok=False, found=f"{path} is not there", fix=fix)


def _smallest(device: str, gpus: Sequence[devices.Gpu]) -> devices.Gpu | None:
    """Of the GPUs that `device` may mean, the one with the least memory."""
    resolved = devices.resolve(device, gpus)
    if resolved == "cpu":
        return None
    if device != "auto":
        index = int(resolved.partition(":")[2])
        gpus = gpus[index : index + 1]
    return min(gpus, key=lambda each: each.memory_mib or 0, default=None)


def memory(
    what: str, numbers: Mapping[str, int], dtype: str, offload: str, smallest: devices.Gpu
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
