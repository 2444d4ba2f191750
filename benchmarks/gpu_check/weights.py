"""Part: build the model of Stable Diffusion 1.5's size, which other parts load."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING

import torch

from benchmarks import sd15

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

#: Of Stable Diffusion 1.5's latents.
NATIVE_SIDE = 64


def run(setting: Setting, found: Finding) -> None:
    """Build it on the device, where drawing a billion numbers takes no time; else on the CPU."""
    dtype = torch.float16 if setting.on_gpu else torch.float32
    began_s = time.perf_counter()
    device = setting.device
    try:
        with torch.device(device):
            sd15.build(setting.weights, setting.scale, dtype)
    except Exception as error:
        if not setting.on_gpu:
            raise
        found.note(f"Building on the GPU failed ({error!r:.200}); built on the CPU.")
        shutil.rmtree(setting.weights, ignore_errors=True)
        device = "cpu"
        sd15.build(setting.weights, setting.scale, dtype)
    if (side := setting.size_px // 8) != NATIVE_SIDE:  # else the warm-up would run its full size
        config = setting.weights / "unet" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": side}))
    took_s = time.perf_counter() - began_s
    size_bytes = sum(file.stat().st_size for file in setting.weights.rglob("*") if file.is_file())
    found.row(built_on=device, seconds=took_s, mib=size_bytes / 2**20)
    found.headline(f"{size_bytes / 2**30:.2f} GiB built on {device} in {took_s:.1f} s.")
