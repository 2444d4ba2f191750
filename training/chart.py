"""The training curves as a picture, drawn with Pillow alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.record import Curve

PANEL_PX = (460, 260)
#: Left, top, right and bottom of the axes inside a panel.
MARGINS_PX = (58, 34, 16, 30)
INK, FAINT, LINE = (40, 40, 40), (224, 224, 224), (25, 60, 215)
#: Ticks of the logarithmic axis, as multiples of each power of ten.
TICKS = (1, 2, 5)


@dataclass(frozen=True)
class Axes:
    """Steps to the right and a loss upwards, logarithmic, in one panel's pixels."""

    left_px: int
    steps: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """Pixel of a step."""
        width = PANEL_PX[0] - MARGINS_PX[0] - MARGINS_PX[2]
        return self.left_px + MARGINS_PX[0] + width * step / self.steps

    def y(self, loss: float) -> float:
        """Pixel of a loss."""
        height = PANEL_PX[1] - MARGINS_PX[1] - MARGINS_PX[3]
        up = math.log(loss / self.low) / math.log(self.high / self.low)
        return MARGINS_PX[1] + height * (1 - up)

    def ticks(self) -> list[float]:
        """The losses to label."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [tick * 10.0**decade for decade in decades for tick in TICKS]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def draw(curves: Sequence[tuple[Curve, str, str]]) -> Image.Image:
    """One panel for each (curve, name of its loss, title), side by side."""
    canvas = Image.new("RGB", (PANEL_PX[0] * len(curves), PANEL_PX[1]), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for panel, (curve, loss, title) in enumerate(curves):
        losses = [row[loss] for row in curve.rows]
        axes = Axes(panel * PANEL_PX[0], curve.steps, min(losses) * 0.9, max(losses) * 1.1)
        left, right = axes.x(0), axes.x(curve.steps)
        pen.text((left, 8), title, INK, font)
        for tick in axes.ticks():
            pen.line((left, axes.y(tick), right, axes.y(tick)), FAINT)
            pen.text((left - 6, axes.y(tick)), f"{tick:g}", INK, font, anchor="rm")
        for step, anchor in ((0, "lt"), (curve.steps // 2, "mt"), (curve.steps, "rt")):
            pen.text((axes.x(step), axes.y(axes.low) + 6), f"{step:,}", INK, font, anchor=anchor)
        points = [(axes.x(row["step"]), axes.y(row[loss])) for row in curve.rows]
        pen.line(points, LINE, 2, joint="curve")
        pen.rectangle((left, axes.y(axes.high), right, axes.y(axes.low)), outline=INK)
    return canvas
