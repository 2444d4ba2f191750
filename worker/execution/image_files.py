"""Encodes images as files, on the threads that upload them, not on the engine's."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import PngImagePlugin

from worker.engine import safetensors_io

if TYPE_CHECKING:
    from worker.engine.jobs.job import GeneratedImage

#: Key of the PNG text chunk from which the image can be generated again.
PNG_KEY = "sag-worker"
QUALITY = 95
#: File extension and content type by `output_type`.
FORMATS = {
    "png": ("png", "image/png"),
    "jpeg": ("jpg", "image/jpeg"),
    "webp": ("webp", "image/webp"),
    "npy": ("npy", "application/x-npy"),
    "latent": ("safetensors", "application/octet-stream"),
}


def encode(image: GeneratedImage, output_type: str, origin: dict[str, Any]) -> bytes:
    """The bytes of an image file; a PNG has `origin` as JSON in a text chunk.

    `npy` is float32 (height, width, 3) in 0 … 1, `latent` a safetensors file of one tensor
    (1, channels, height / f, width / f), which can be the `latents` of another request.
    """
    file = io.BytesIO()
    match output_type:
        case "png":
            text = PngImagePlugin.PngInfo()
            text.add_itxt(PNG_KEY, json.dumps(origin, sort_keys=True))
            image.pixels.save(file, "PNG", pnginfo=text)
        case "jpeg" | "webp":
            image.pixels.save(file, output_type.upper(), quality=QUALITY)
        case "npy":
            np.save(file, np.asarray(image.pixels, np.float32))
        case "latent":
            return safetensors_io.write(image.pixels)
        case _:
            message = f"unknown output_type {output_type!r}"
            raise ValueError(message)
    return file.getvalue()
