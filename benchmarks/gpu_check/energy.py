"""Part: the energy of a picture, as the GPU's own counter tells it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bare
from benchmarks.gpu_check import given
from benchmarks.gpu_check.outcome import Skipped

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

WAITING = 16
#: The counter is renewed every 0.1 s or so: over this time that is 1 %.
MEASURED_S = 8.0


def run(setting: Setting, found: Finding) -> None:
    """Read the counter before and after pictures of the usual size and steps."""
    pynvml, gpu = _counter()
    tasks = given.make(setting, WAITING, setting.steps)
    with bare.engine(setting.sd15(), max_batch_rows=setting.max_batch_rows) as engine:
        engine.results(tasks)
        torch.cuda.synchronize(setting.device)
        before_mj, began_s, pictures = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), _now(), 0
        while _now() - began_s < MEASURED_S:
            engine.results(tasks)
            pictures += len(tasks)
        took_s = _now() - began_s
        joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before_mj) / 1000
    found.row(
        pictures=pictures,
        steps=setting.steps,
        seconds=took_s,
        joules_a_picture=joules / pictures,
        mean_watts=joules / took_s,
    )
    found.headline(
        f"{joules / pictures:.3g} J a picture of {setting.size_px} px and {setting.steps} steps, "
        f"{joules / took_s:.0f} W on average."
    )


def _now() -> float:
    return time.perf_counter()


def _counter() -> tuple[Any, Any]:
    """NVML and the first GPU, whose counter answers; raises `Skipped` where it does not."""
    try:
        import pynvml  # noqa: PLC0415  # the worker extra

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception as error:
        message = f"NVML does not tell the energy: {error!r:.200}"
        raise Skipped(message) from error
    return pynvml, gpu
