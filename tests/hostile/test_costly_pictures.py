"""Small pictures that would cost a lot: what they may cost is limited while they are read."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from tests.pictures import FILES, encoded, photo, prepared, refused
from worker.execution import input_images, picture_file

#: Side of the pictures, in pixels: 64 blocks of 8 x 8.
SIDE_PX = 64
BLOCK_BYTES = 65_536
PAIR = b"\xff\xda"


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(scans: int, header: bytes = b"") -> bytes:
    """A gray JPEG of one scan for the blocks' means, and empty ones for the rest."""
    frame = struct.pack(">BHHB", 8, SIDE_PX, SIDE_PX, 1) + bytes([1, 0x11, 0])
    # One code each, a single 0: of the means "no difference", of the rest "64 blocks are empty".
    one_code = bytes([1] + [0] * 15)
    tables = segment(0xC4, b"\x00" + one_code + b"\x00" + b"\x10" + one_code + b"\x60")
    means = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(8)
    empty = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\x01"
    quantized = segment(0xDB, b"\x00" + bytes([1] * 64))
    begin = b"\xff\xd8" + header + quantized + segment(0xC2, frame) + tables
    return begin + means + empty * (scans - 1) + b"\xff\xd9"


def with_header(data: bytes, header: bytes) -> bytes:
    """A JPEG with more segments after its first marker."""
    return data[:2] + header + data[2:]


def with_chunks(data: bytes, count: int) -> bytes:
    """A PNG with empty private chunks after its header."""
    kind = b"prVt"
    chunk = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    return data[:33] + chunk * count + data[33:]


@pytest.mark.parametrize("scans", [2, 10, 99, 100])
def test_a_jpeg_of_some_scans_is_read(scans: int) -> None:
    """Up to the limit, also where the header has the marker of a scan in a camera's preview."""
    gray = bytes([128] * SIDE_PX * SIDE_PX * 3)
    assert prepared(jpeg(scans)).image == gray
    assert prepared(jpeg(scans, segment(0xE1, PAIR * 5_000))).image == gray


@pytest.mark.parametrize("scans", [101, 5_000])
def test_a_jpeg_of_many_scans_is_refused(scans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a pass over all pixels, however few bytes it has; refused before it is decoded."""
    data = jpeg(scans)
    monkeypatch.setattr(picture_file, "MAX_CPU_S", 3600)
    fault = refused(data)
    assert (fault["where"], fault["what"], fault["limit"]) == (
        "image",
        "has too many scans",
        "<= 100 scans",
    )
    assert refused(encoded(photo(), "PNG"), data)["where"] == "mask_image"


def test_a_scan_between_two_blocks_counts() -> None:
    """A marker with a byte in each of two blocks is not missed; nor are scans of other blocks."""
    place = jpeg(101).rindex(PAIR)
    filler = segment(0xFE, bytes(BLOCK_BYTES - 1 - place - 4))
    data = jpeg(101, filler)
    assert data.rindex(PAIR) == BLOCK_BYTES - 1
    assert refused(data)["limit"] == "<= 100 scans"
    prepared(jpeg(100, filler))


def test_a_photo_of_many_scans_is_refused_in_a_file_of_several() -> None:
    """Cameras put several photos into one file; the scans of the first count, and no others."""
    photos = encoded(photo(), "MPO", save_all=True, append_images=[photo()])
    prepared(photos + jpeg(50) + bytes(BLOCK_BYTES) + jpeg(5_000))
    first = photos.index(PAIR)
    end = photos.index(b"\xff\xd9", first)
    many = photos[:end] + segment(0xDA, bytes(6)) * 200 + photos[end:]
    with Image.open(picture_file.PictureFile(many, "image")) as file:
        assert file.format == "MPO"
    assert refused(many)["limit"] == "<= 100 scans"


EXIF = segment(0xE1, b"Exif\0\0" + bytes(10))


@pytest.mark.parametrize(
    "data",
    [
        with_header(encoded(photo(), "JPEG"), EXIF * 20_000),
        with_header(encoded(photo(), "JPEG"), segment(0xEF, b"") * 20_000),
        with_header(encoded(photo(), "JPEG"), segment(0xFE, b"") * 20_000),
        with_chunks(encoded(photo(), "PNG"), 20_000),
    ],
    ids=["EXIF", "APP15", "comments", "chunks"],
)
def test_a_header_of_many_parts_is_refused(data: bytes) -> None:
    """Pillow keeps each, and joins parts of EXIF data anew with every further one."""
    fault = refused(data)
    assert (fault["where"], fault["what"], fault["limit"]) == (
        "image",
        "has a header of too many parts",
        "<= 20000 reads",
    )


@pytest.mark.parametrize("kind", FILES)
def test_no_whole_file_is_near_a_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header needs few reads, and the data of a PNG may come in as many chunks as it likes."""
    monkeypatch.setattr(picture_file, "MAX_HEADER_READS", 50)
    monkeypatch.setattr(picture_file, "MAX_SCANS", 12)
    prepared(FILES[kind](), size=(64, 64))


def test_time_is_limited_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the header for too long is stopped, with the limit's own value."""
    monkeypatch.setattr(picture_file, "MAX_CPU_S", -1.5)
    for kind in ("png", "jpeg", "webp", "photo of a phone"):
        fault = refused(FILES[kind]())
        assert (fault["where"], fault["what"], fault["limit"]) == (
            "image",
            "takes too long to decode",
            "<= -1.5 s of a processor",
        )


@pytest.mark.parametrize("kind", ["png", "palette", "jpeg", "progressive jpeg", "photo of a phone"])
def test_time_is_limited_while_pixels_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that takes too long is the last one."""
    check = input_images._check

    def check_then_limit(file: Image.Image, where: str) -> None:
        check(file, where)
        monkeypatch.setattr(picture_file, "MAX_CPU_S", -1)

    monkeypatch.setattr(input_images, "_check", check_then_limit)
    fault = refused(FILES[kind]())
    assert (fault["where"], fault["what"]) == ("image", "takes too long to decode")
