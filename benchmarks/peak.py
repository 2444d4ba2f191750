"""Peak memory of UNet calls. `python -m benchmarks.peak …` is one point in a process of its own.

On the CPU the peak is the kernel's high-water mark of resident memory, which only a fresh process
has for itself: `getrusage` starts from the parent's, so VmHWM of /proc is read in its place.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import unet as unets
from benchmarks.model import Model

if TYPE_CHECKING:
    from typing import Any

#: Calls of one point: the second may need what the first did not.
CALLS = 2
POINT_S = 600


def growth_bytes(model: Model, rows: int) -> int | None:
    """What calls of `rows` rows add to the weights at their peak; None when memory runs out."""
    return _on_cpu(model, rows) if model.device == "cpu" else _on_gpu(model, rows)


def _on_gpu(model: Model, rows: int) -> int | None:
    """Of torch's own allocations, what other tensors held before left out."""
    unet = unets.load(model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    before_bytes = torch.cuda.memory_allocated(model.device)
    try:
        _call(model, unet, rows)
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(model.device) - before_bytes


def _on_cpu(model: Model, rows: int) -> int:
    command = [sys.executable, "-m", "benchmarks.peak", model.name, str(model.path), str(rows)]
    if model.size_px is not None:
        command.append(str(model.size_px))
    found = subprocess.run(  # noqa: S603  # a fixed command
        command, check=True, stdout=subprocess.PIPE, timeout=POINT_S
    )
    return int(found.stdout.split()[-1])


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


def main() -> None:
    """Print the growth of one point on the CPU, in bytes."""
    name, path, rows, *size_px = sys.argv[1:]
    model = Model(name, Path(path), "cpu", int(size_px[0]) if size_px else None)
    unet = unets.load(model)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before_bytes = _resident_bytes("VmRSS")
    _call(model, unet, int(rows))
    print(_resident_bytes("VmHWM") - before_bytes)


if __name__ == "__main__":
    main()
