"""Pictures that requests refer to: checks a caller's files and makes pixels of them, as diffusers.

Runs on the slots' threads. Pillow is imported with this module, so with the first picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from api_contracts.request_types import MAX_SIDE_PX
from worker.engine.jobs.job import refusal
from worker.errors import TaskFailedError
from worker.execution.picture_file import PictureFile

if TYPE_CHECKING:
    from collections.abc import Mapping

#: As Pillow names them, by the content of a file.
_FORMATS = ("PNG", "JPEG", "WEBP")
#: An MPO is a photo, followed by others that its camera made of it.
_FORMATS_OF_JPEG = ("JPEG", "MPO")
_ACCEPTED = "a whole PNG, JPEG or WebP"
#: Most pixels of a file, checked before they are decoded: 4 bytes each, and as many again for a
#: picture that is turned or converted. Measured of the most: 0.5 GiB, of a progressive JPEG 0.6 (in
#: CMYK 0.7), of a WebP 1 GiB.
MAX_PIXELS = 64_000_000
#: Smallest side of a task, and what its sides are multiples of, in pixels.
_MIN_SIDE_PX, _MULTIPLE_PX = 64, 8


@dataclass(frozen=True)
class InputImage:
    """The picture that a task starts from, in the size that is made, rows from the top."""

    height: int
    width: int
    #: 3 bytes for each pixel, RGB.
    image: bytes
    #: One byte for each pixel.
    mask_image: bytes | None


def prepare(
    files: Mapping[str, bytes], height: int | None, width: int | None, max_side_px: int
) -> InputImage:
    """Decode the files of `image` and, if there is one, `mask_image`, and resize them.

    A side that is None is the picture's own, cut down to a multiple of 8. Raises `BadRequestError`.
    """
    picture = _decode(files["image"], "image")
    height, width = _size_px(picture, height, width, max_side_px)
    image = _resized(picture, height, width).tobytes()
    if "mask_image" not in files:
        return InputImage(height, width, image, None)
    del picture  # with the mask, twice as much memory
    mask = _resized(_decode(files["mask_image"], "mask_image"), height, width)
    return InputImage(height, width, image, mask.convert("L").tobytes())


def _decode(data: bytes, where: str) -> Image.Image:
    """The picture in RGB, turned as its EXIF data says, without its alpha channel."""
    try:
        picture = PictureFile(data, where)
        with Image.open(picture, formats=_FORMATS) as file:
            _check(file, where)
            picture.begin_decoding(has_scans=file.format in _FORMATS_OF_JPEG)
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            # Only other modes have a use for it, and Pillow warns.
            file.info.pop("transparency", None)
            return file if file.mode == "RGB" else file.convert("RGB")
    except TaskFailedError:
        raise
    except UnidentifiedImageError as error:
        raise refusal(where, "is no picture that can be read", _ACCEPTED) from error
    except Image.DecompressionBombError as error:  # far more pixels than `_check` allows
        raise refusal(where, "has too many pixels", f"<= {MAX_PIXELS} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # malformed files raise anything
        raise refusal(where, f"can't be decoded: {error}", _ACCEPTED) from error


def _check(file: Image.Image, where: str) -> None:
    """What is known of a file before it is decoded."""
    width, height = file.size
    if max(width, height) > MAX_SIDE_PX:
        raise refusal(where, f"is {width} x {height} px", f"each side <= {MAX_SIDE_PX} px")
    if width * height > MAX_PIXELS:
        raise refusal(where, f"is {width} x {height} px", f"<= {MAX_PIXELS} pixels")
    if file.format != "MPO" and getattr(file, "is_animated", False):
        raise refusal(where, "is animated", "one picture")
    if file.mode.startswith("I"):  # Pillow, and so diffusers, would turn nearly all of it white
        raise refusal(where, "is gray with 16 bits for each pixel", "8 bits for each channel")


def _size_px(
    picture: Image.Image, height: int | None, width: int | None, max_side_px: int
) -> tuple[int, int]:
    """The size to make: that of the request, or the picture's own."""
    found = []
    for given, own in ((height, picture.height), (width, picture.width)):
        side = own - own % _MULTIPLE_PX if given is None else given
        if not _MIN_SIDE_PX <= side <= max_side_px:
            what = f"is {picture.width} x {picture.height} px, used for each side left out"
            limit = f"each side {_MIN_SIDE_PX} to {max_side_px} px, or give height and width"
            raise refusal("image", what, limit)
        found.append(side)
    return found[0], found[1]


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.LANCZOS)
