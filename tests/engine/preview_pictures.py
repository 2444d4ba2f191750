"""What previews show, and how far apart two pictures are."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

PROMPTS = (
    "a large red star on a blue background",
    "a small green ring on a white background",
    "a large yellow circle on a purple background",
    "a cyan cross left of a pink square on a black background",
)


def picture(url: str | None) -> Image.Image:
    """What a data URL shows; it must be a JPEG."""
    head, data = str(url).split(",", 1)
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format == "JPEG"
    return image


def pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """An image at a size, width by height, its colours averaged."""
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def error(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The mean difference, of 255."""
    return float(np.abs(ours - theirs).mean())
