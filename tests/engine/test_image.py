"""Files: what each output type holds, and the request in a PNG."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from worker.engine.jobs.job import GeneratedImage
from worker.execution import image_files

if TYPE_CHECKING:
    from tests.engine.jobs import Make

ORIGIN = {"request": {"prompt": "ein großer Stern ★"}, "seed": 5, "versions": {"torch": "2"}}


def test_a_png_carries_its_origin_and_the_same_bytes(make: Make) -> None:
    """The text chunk holds the request, and the same picture gives the same file."""
    picture = make(output_type="png").images[0]
    data = image_files.encode(picture, "png", ORIGIN)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (64, 64)
        assert json.loads(opened.text[image_files.PNG_KEY]) == ORIGIN  # type: ignore[attr-defined]  # a PNG has it
    assert data == image_files.encode(make(output_type="png").images[0], "png", ORIGIN)


@pytest.mark.parametrize(("kind", "form"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_jpeg_and_webp_are_what_they_say(make: Make, kind: str, form: str) -> None:
    """The file has the requested format."""
    with Image.open(
        io.BytesIO(image_files.encode(make(output_type=kind).images[0], kind, {}))
    ) as opened:
        assert (opened.format, opened.size) == (form, (64, 64))


def test_npy_holds_floats_between_zero_and_one(make: Make) -> None:
    """`npy` is float32 (height, width, 3) in 0 … 1."""
    array = np.load(io.BytesIO(image_files.encode(make(output_type="npy").images[0], "npy", {})))
    assert (array.shape, array.dtype) == ((64, 64, 3), np.float32)
    assert 0 <= array.min() <= array.max() <= 1


def test_an_unknown_kind_is_an_error() -> None:
    """An unknown output type is an error."""
    with pytest.raises(ValueError, match="gif"):
        image_files.encode(GeneratedImage(None, 1, 1, 0, None), "gif", {})
