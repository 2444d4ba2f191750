"""Pictures that are refused, each with its field, what is wrong and the limit."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.pictures import FILES, animated, encoded, photo, png, prepared, refused
from worker.errors import BadRequestError


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_another_format_is_refused(form: str) -> None:
    """The content decides, not the name; only PNG, JPEG and WebP are decoded."""
    fault = refused(encoded(photo(width=64, height=64), form))
    assert (fault["where"], fault["limit"]) == ("image", "a whole PNG, JPEG or WebP")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<svg/>", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\n", b"RIFF"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """A file that is no picture, empty or a mere signature, is refused by its field."""
    assert refused(data)["where"] == "image"
    assert refused(encoded(photo(), "PNG"), data)["where"] == "mask_image"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "jpeg", "progressive jpeg", "webp", "lossless webp"])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    """A truncated file is refused: half of a picture is not taken for a whole one."""
    data = FILES[kind]()
    fault = refused(data[: int(len(data) * share)])
    assert (fault["where"], fault["limit"]) == ("image", "a whole PNG, JPEG or WebP")
    assert "BytesIO" not in fault["what"]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animated_file_is_refused(form: str) -> None:
    """An animated file is refused; its later pictures are not ignored."""
    fault = refused(animated(form))
    assert (fault["where"], fault["what"], fault["limit"]) == (
        "image",
        "is animated",
        "one picture",
    )


def test_gray_of_16_bits_is_refused() -> None:
    """Gray of 16 bits is refused: Pillow would turn nearly all of it white."""
    deep = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16)
    fault = refused(encoded(deep, "PNG"))
    assert fault["limit"] == "8 bits for each channel"


@pytest.mark.parametrize(
    ("width", "height", "limit"),
    [
        (16_385, 8, "each side <= 16384 px"),
        (8, 16_385, "each side <= 16384 px"),
        (8_001, 8_000, "<= 64000000 pixels"),
        (16_384, 16_384, "<= 64000000 pixels"),
        (2**31 - 1, 2**31 - 1, "<= 64000000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(
    width: int, height: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header's size is enough: Pillow makes no place for pixels."""
    placed: list[str] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", lambda _: placed.append("pixels"))
    fault = refused(png(width, height), size=(64, 64))
    assert (fault["where"], fault["limit"]) == ("image", limit)
    assert placed == []
    refused(png(64, 64))  # without data
    assert placed == ["pixels"]


def test_a_bomb_in_another_chunk_is_refused() -> None:
    """A text chunk that unpacks to more than Pillow allows is refused."""
    packed = b"comment\0\0" + zlib.compress(bytes(80 * 2**20))
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    data = png(64, 64, bytes(64 * (1 + 3 * 64)), chunk)
    assert refused(data)["where"] == "image"


@pytest.mark.parametrize(
    ("width", "height", "size", "is_taken"),
    [
        (63, 64, (None, None), False), (64, 63, (None, None), False),
        (1032, 64, (None, None), False), (64, 1032, (None, None), False),
        (1031, 64, (None, None), True), (63, 63, (64, 64), True), (2000, 1500, (64, 64), True),
        (1, 1, (64, 64), True), (2000, 500, (64, None), False), (2000, 500, (None, 64), True),
    ],
)  # fmt: skip
def test_a_size_that_is_not_made_is_refused(
    width: int, height: int, size: tuple[int | None, int | None], is_taken: bool
) -> None:
    """A picture's own side that is too small or too large; not where the request gives others."""
    data = encoded(Image.new("RGB", (width, height)), "PNG")
    if is_taken:
        prepared(data, size=size)
        return
    fault = refused(data, size=size)
    assert fault["where"] == "image"
    assert f"{width} x {height} px" in fault["what"]
    assert "64 to 1024 px" in fault["limit"]


@pytest.mark.parametrize("kind", ["png", "palette", "jpeg", "progressive jpeg", "webp", "cmyk"])
@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged EXIF data
def test_a_damaged_file_is_read_or_refused(kind: str) -> None:
    """Whatever bytes it has, nothing but a refusal of its field is raised."""
    rng, whole = random.Random(16), FILES[kind]()
    named: set[str] = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            place = rng.randrange(min(len(data), rng.choice((64, 1024, 10**6))))
            data[place] = rng.randrange(256)
        try:
            found = prepared(bytes(data), size=(64, 64))
        except BadRequestError as refusal:
            named.update(fault["where"] for fault in refusal.details["faults"])
        else:
            assert len(found.image) == 64 * 64 * 3
    assert named == {"image"}
