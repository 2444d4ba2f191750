"""Peak memory of UNet calls. Each point is measured in a process of its own, see `process`.

On the CPU the peak is the kernel's high-water mark of resident memory, which only a fresh process
has for itself: `getrusage` starts from the parent's, so VmHWM of /proc is read in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import unet as unets

if TYPE_CHECKING:
    from typing import Any

    from benchmarks.model import Model

#: Calls of one point: the second may need what the first did not.
CALLS = 2


def growth_bytes(model: Model, rows: int) -> int | None:
    """What calls of `rows` rows add to the weights at their peak; None when memory runs out."""
    unet = unets.load(model)
    return _on_cpu(model, unet, rows) if model.device == "cpu" else _on_gpu(model, unet, rows)


def _on_gpu(model: Model, unet: Any, rows: int) -> int | None:  # noqa: ANN401  # diffusers has no types
    """Of torch's own allocations."""
    torch.cuda.reset_peak_memory_stats(model.device)
    before_bytes = torch.cuda.memory_allocated(model.device)
    try:
        _call(model, unet, rows)
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(model.device) - before_bytes


def _on_cpu(model: Model, unet: Any, rows: int) -> int:  # noqa: ANN401  # diffusers has no types
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before_bytes = _resident_bytes("VmRSS")
    _call(model, unet, rows)
    return _resident_bytes("VmHWM") - before_bytes


def _call(model: Model, unet: Any, rows: int) -> None:  # noqa: ANN401  # diffusers has no types
    given = unets.inputs(model, unet, rows)
    with torch.inference_mode():
        for _ in range(CALLS):
            unet(*given)


def _resident_bytes(field: str) -> int:
    """`VmRSS`, what is resident now, or `VmHWM`, the most that ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    message = f"the kernel tells no {field}"
    raise RuntimeError(message)
