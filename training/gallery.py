"""A labelled grid of pictures: what was asked under what came out."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from training.shapes import SIDE_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = 6
#: Pictures are shown at this multiple of their size.
ZOOM = 2
GAP_PX = 10
LABEL_PX = 56
LABEL_LETTERS = 24
INK, WRONG_INK = (40, 40, 40), (200, 20, 20)


def grid(entries: Sequence[tuple[Image.Image, str, bool]]) -> Image.Image:
    """Lay out (picture, prompt, right), six in a row; the prompt of a wrong one in red."""
    side = SIDE_PX * ZOOM
    cell = (side + GAP_PX, side + LABEL_PX)
    rows = -(-len(entries) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * cell[0] + GAP_PX, rows * cell[1] + GAP_PX), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(10)
    for number, (picture, prompt, right) in enumerate(entries):
        x = GAP_PX + number % COLUMNS * cell[0]
        y = GAP_PX + number // COLUMNS * cell[1]
        canvas.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        pen.rectangle((x - 1, y - 1, x + side, y + side), outline=(200, 200, 200))
        label = "\n".join(wrap(prompt, LABEL_LETTERS))
        pen.multiline_text((x, y + side + 4), label, INK if right else WRONG_INK, font, spacing=2)
    return canvas
