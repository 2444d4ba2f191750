"""Part: seconds and memory of a picture in each offload mode."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from benchmarks import bare
from benchmarks.gpu_check import given, memory_holder
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from worker.config.models import ModelSpec
    from worker.engine.loaded_model import LoadedModel

MODES = ("none", "model", "swap", "sequential", "auto")
TASKS = 2
#: Sequential offload copies all weights for each call: rows are not measured here.
ROWS = 8
#: Free memory with which `auto` must not keep the model on the device: weights are 2 GiB, and it
#: wants 2.5 times that.
LITTLE_BYTES = 4 * 2**30


def run(setting: Setting, found: Finding) -> None:
    """Every mode in turn; on a CPU the worker ignores them."""
    if not setting.on_gpu:
        found.note("On a CPU the worker ignores the mode; peak memory: only on a GPU.")
        _, took = _mode(setting, found, "auto", None)
        found.headline(f"A picture of {setting.few_steps} steps: {took}.")
        return
    told = []
    with ExitStack() as stack:
        holder = stack.enter_context(memory_holder.started(setting.device))
        for mode in MODES:
            _, took = _mode(setting, found, mode, None)
            told.append(f"{mode} {took}")
            found.headline(f"A picture of {setting.few_steps} steps: {'; '.join(told)}.")
        _empty_cache()  # what this process keeps would be free again afterwards
        free_bytes = holder.leave(LITTLE_BYTES)
        used, _ = _mode(setting, found, "auto", free_bytes)
        found.check("with little memory `auto` offloads", holds=used == "model")


def _mode(setting: Setting, found: Finding, asked: str, free_bytes: int | None) -> tuple[str, str]:
    """Load, warm up, measure, unload; gives the mode that was used, and what a picture took."""
    used: list[str] = []

    def load(spec: ModelSpec, device: str, offload: str, *, compiled: bool = False) -> LoadedModel:
        model = model_loader.load(spec, device, offload, compiled=compiled)
        used.append(model.offload)
        return model

    if setting.on_gpu:
        _empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    tasks = given.make(setting, TASKS, setting.few_steps)
    began_s = time.perf_counter()
    with bare.engine(setting.sd15(), asked, max_batch_rows=ROWS, loader=load) as engine:
        engine.results(tasks[:1])
        first_s = time.perf_counter() - began_s
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        began_s = time.perf_counter()
        engine.results(tasks)
        took_s = time.perf_counter() - began_s
    peak = torch.cuda.max_memory_allocated(setting.device) / 2**30 if setting.on_gpu else None
    found.row(
        asked=asked,
        used=used[0],
        free_gib=None if free_bytes is None else free_bytes / 2**30,
        load_and_first_s=first_s,
        seconds_a_picture=took_s / TASKS,
        peak_gib=peak,
    )
    return used[0], f"{took_s / TASKS:.2g} s" + ("" if peak is None else f" and {peak:.2g} GiB")


def _empty_cache() -> None:
    """Give back what the last model had; offload's hooks are reference cycles with it."""
    gc.collect()
    torch.cuda.empty_cache()
