"""Pictures that callers upload: every pixel as diffusers reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image

from tests.pictures import FILES, encoded, photo, prepared, turned

if TYPE_CHECKING:
    from pathlib import Path


def by_diffusers(
    path: Path, data: bytes, height: int | None, width: int | None
) -> np.ndarray[Any, Any]:
    """Pixels in 0 … 1, (height, width, 3), as a pipeline's image processor makes them."""
    path.write_bytes(data)
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False)
    found = processor.preprocess(load_image(str(path)), height, width)
    pixels: np.ndarray[Any, Any] = np.array(found, np.float32)[0].transpose(1, 2, 0)
    return pixels


def mask_by_diffusers(
    path: Path, data: bytes, height: int | None, width: int | None
) -> np.ndarray[Any, Any]:
    """1 where the picture is painted anew, (height, width), as for inpainting."""
    path.write_bytes(data)
    processor = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    found = processor.preprocess(load_image(str(path)), height, width)
    return np.array(found, np.float32).reshape(found.shape[-2:])


@pytest.mark.parametrize("size", [(None, None), (64, 72), (None, 400), (256, None)], ids=str)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of diffusers' call
def test_pixels_are_those_of_diffusers(
    tmp_path: Path, kind: str, size: tuple[int | None, int | None]
) -> None:
    """Pixels of any format, mode, palette and size equal those of diffusers' `load_image`."""
    data = FILES[kind]()
    found = prepared(data, size=size)
    expected = by_diffusers(tmp_path / "picture", data, *size)
    assert (found.height, found.width) == expected.shape[:2]
    pixels = np.frombuffer(found.image, np.uint8).reshape(expected.shape)
    assert np.array_equal(pixels.astype(np.float32) / 255, expected)
    assert found.mask_image is None


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of(kind: str) -> None:
    """A warning of Pillow would tell the operator nothing."""
    assert prepared(FILES[kind]()).image


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_says(
    tmp_path: Path, form: str, orientation: int
) -> None:
    """All eight EXIF orientations are applied; the size is that of the turned picture."""
    data = encoded(photo(), form, **turned(orientation))
    found = prepared(data)
    assert (found.height, found.width) == ((120, 200) if orientation < 5 else (200, 120))
    expected = by_diffusers(tmp_path / "picture", data, None, None)
    pixels = np.frombuffer(found.image, np.uint8).reshape(expected.shape)
    assert np.array_equal(pixels.astype(np.float32) / 255, expected)
    upright = prepared(encoded(photo(), form))
    assert (found.image == upright.image) is (orientation == 1)


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((64, 64), (64, 64)),
        ((71, 79), (64, 72)),
        ((1031, 65), (1024, 64)),
        ((200, 999), (200, 992)),
    ],
)
def test_a_side_is_cut_down_to_a_multiple_of_8(
    size: tuple[int, int], made: tuple[int, int]
) -> None:
    """Sides that the request leaves out are the picture's own, cut down; it is resized to them."""
    found = prepared(encoded(photo(height=size[0], width=size[1]), "PNG"))
    assert (found.height, found.width) == made
    assert len(found.image) == made[0] * made[1] * 3


@pytest.mark.parametrize("kind", ["png", "jpeg", "alpha", "gray", "one bit", "palette"])
@pytest.mark.parametrize("size", [(None, None), (64, 72), (256, 192)], ids=str)
def test_a_mask_is_that_of_diffusers(
    tmp_path: Path, kind: str, size: tuple[int | None, int | None]
) -> None:
    """A mask of any mode and size is resized to the picture's; it splits where diffusers' does."""
    image, mask = encoded(photo(width=208, height=96), "PNG"), FILES[kind]()
    found = prepared(image, mask, size)
    assert found.mask_image is not None
    values = np.frombuffer(found.mask_image, np.uint8).reshape(found.height, found.width)
    expected = mask_by_diffusers(tmp_path / "mask", mask, found.height, found.width)
    assert np.array_equal((values > 127).astype(np.float32), expected)
    assert 0.05 < expected.mean() < 0.95
    assert found.image == prepared(image, size=size).image
