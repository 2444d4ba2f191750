"""The folder that ships: the trained UNet in half precision and its scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import DDIMPipeline

from training.export import MODE, weight_files
from training.pixels.denoiser import averaged, noise_schedule

if TYPE_CHECKING:
    from pathlib import Path


def write(work: Path, out: Path) -> None:
    """Write the model of the last checkpoint in `work`, of any step, to `out`."""
    pipeline = DDIMPipeline(unet=averaged(work).half(), scheduler=noise_schedule())
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in weight_files(out):
        file.chmod(MODE)
