"""Pictures and masks to start from, as the fields of a job."""

from __future__ import annotations

from typing import Any

import numpy as np


def picture(height: int = 64, width: int = 64, seed: int = 0) -> dict[str, Any]:
    """Fields of a job that starts from soft patches of colour."""
    dice = np.random.default_rng(seed)
    patches = dice.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    pixels = patches.repeat(16, 0).repeat(16, 1)[:height, :width]
    return {"image": pixels.tobytes(), "height": height, "width": width, "strength": 0.6}


def masked(height: int = 64, width: int = 64, seed: int = 0) -> dict[str, Any]:
    """Fields of a job that repaints the middle of such a picture, by a mask with soft edges."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 3] = 255
    mask[height // 4] = 100
    return picture(height, width, seed) | {"mask_image": mask.tobytes()}
