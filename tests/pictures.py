"""Files of pictures as callers upload them, and some that are made to do harm."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from worker.errors import BadRequestError
from worker.execution import input_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.execution.input_images import InputImage

#: `SAG_MAX_SIDE_PX` of these tests.
LIMIT_PX = 1024


def photo(mode: str = "RGB", width: int = 200, height: int = 120) -> Image.Image:
    """A picture with gradients and noise, which each step of a wrong path would change."""
    rng = np.random.default_rng(18)
    channels = len(Image.new(mode, (1, 1)).getbands())
    ramp = np.linspace(0, 255, width * height * channels).reshape(height, width, channels)
    pixels = (ramp + rng.integers(0, 80, ramp.shape)) % 256
    return Image.frombytes(mode, (width, height), pixels.astype(np.uint8).tobytes())


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def animated(form: str, size: tuple[int, int] = (64, 64)) -> bytes:
    frames = [Image.new("RGB", size, (shade, 0, 0)) for shade in (0, 90, 180)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


def png(width: int, height: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG in RGB of any size that its header says, whatever data it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def prepared(
    image: bytes, mask: bytes | None = None, size: tuple[int | None, int | None] = (None, None)
) -> InputImage:
    files = {"image": image} | ({} if mask is None else {"mask_image": mask})
    return input_images.prepare(files, *size, LIMIT_PX)


def refused(image: bytes, mask: bytes | None = None, **size: Any) -> dict[str, str]:
    with pytest.raises(BadRequestError) as caught:
        prepared(image, mask, **size)
    (fault,) = caught.value.details["faults"]
    assert all(fault.values())
    return dict(fault)


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(photo(), "PNG"),
    "jpeg": lambda: encoded(photo(), "JPEG", quality=80),
    "progressive jpeg": lambda: encoded(photo(), "JPEG", progressive=True),
    "webp": lambda: encoded(photo(), "WEBP", quality=80),
    "lossless webp": lambda: encoded(photo(), "WEBP", lossless=True),
    "alpha": lambda: encoded(photo("RGBA"), "PNG"),
    "alpha webp": lambda: encoded(photo("RGBA"), "WEBP", lossless=True, exact=True),
    "gray": lambda: encoded(photo("L"), "PNG"),
    "gray jpeg": lambda: encoded(photo("L"), "JPEG"),
    "gray and alpha": lambda: encoded(photo("LA"), "PNG"),
    "one bit": lambda: encoded(photo("L").convert("1"), "PNG"),
    "palette": lambda: encoded(photo().quantize(64), "PNG"),
    "palette, one color transparent": lambda: encoded(photo().quantize(64), "PNG", transparency=3),
    "palette and alpha": lambda: encoded(
        photo().quantize(64), "PNG", transparency=bytes(range(64))
    ),
    "rgb, one color transparent": lambda: encoded(photo(), "PNG", transparency=(1, 2, 3)),
    "cmyk": lambda: encoded(photo("CMYK"), "JPEG"),
    "ycbcr": lambda: encoded(photo("YCbCr"), "JPEG"),
    "profile": lambda: encoded(photo(), "PNG", icc_profile=b"x" * 200),
    "interlaced rows": lambda: png(64, 64, bytes(64 * (1 + 3 * 64))),
    "photo of a phone": lambda: encoded(
        photo(), "MPO", save_all=True, append_images=[photo(height=60, width=100)]
    ),
}
