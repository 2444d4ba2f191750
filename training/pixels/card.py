"""The card of the pixel model: `README.md` and its pictures, from the files beside the weights."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open

from training import chart, record
from training.export import weight_files
from training.findings import table
from training.pixels import denoiser, evaluate
from training.pixels.classes import CLASSES, NULL_CLASS, label_of, name_of
from training.pixels.dataset import SIDE_PX
from training.pixels.evaluate import Guidance
from training.shapes import COLOURS, SHAPES
from worker.config.models import shipped_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.pixels.evaluate import Evaluation, Result
    from training.record import Record

FILE, SAMPLES_FILE, CURVES_FILE = "README.md", "samples.png", "curves.png"
#: The classes and settings of the sample pictures; one row for each setting.
SAMPLED = tuple(
    label_of(colour, shape)
    for colour, shape in zip(
        ("red", "yellow", "green", "blue", "white", "pink", "orange", "black"),
        (*SHAPES, "star", "ring"),
        strict=True,
    )
)
ROWS = (Guidance(1.0, 0.0), Guidance(1.0, 1.0), Guidance(2.0, 0.0), Guidance(2.0, 1.0))
_ZOOM, _GAP_PX, _LEFT_PX, _TOP_PX = 3, 8, 120, 24
FRONT = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [self-attention-guidance, class-conditional, tiny, synthetic]
inference: false
---"""


def write(out: Path) -> None:
    """Write the card, its sample pictures and its curve into `out`."""
    _samples(out).save(out / SAMPLES_FILE, optimize=True)
    title = "UNet: squared error of the velocity"
    panels = [(curve, "velocity", title) for curve in record.read(out).curves]
    chart.draw(panels).save(out / CURVES_FILE, optimize=True)
    (out / FILE).write_text(text(out))


def text(out: Path) -> str:
    """The card's Markdown, from the files in `out`."""
    evaluation, run = evaluate.read(out), record.read(out)
    licence = "## Licence\n\nApache-2.0, as the repository. No other data or weights went into it."
    sections = (
        FRONT, _introduction(out), _usage(), _measurements(evaluation), _training(run), licence,
    )  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _samples(out: Path) -> Image.Image:
    """A row of pictures for each of `ROWS`, all from the same noise."""
    side = SIDE_PX * _ZOOM
    width = _LEFT_PX + len(SAMPLED) * (side + _GAP_PX)
    canvas = Image.new("RGB", (width, _TOP_PX + len(ROWS) * (side + _GAP_PX)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for column, label in enumerate(SAMPLED):
        pen.text((_LEFT_PX + column * (side + _GAP_PX), 6), name_of(label), "black", font)
    with evaluate.PixelEngine(out) as engine:
        for number, guidance in enumerate(ROWS):
            y = _TOP_PX + number * (side + _GAP_PX)
            words = f"guidance_scale {guidance.guidance_scale:g}\nsag_scale {guidance.sag_scale:g}"
            pen.multiline_text((6, y + 30), words, "black", font, spacing=4)
            for column, picture in enumerate(engine.pictures(SAMPLED, guidance)):
                tile = picture.resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(tile, (_LEFT_PX + column * (side + _GAP_PX), y))
    return canvas


def _introduction(out: Path) -> str:
    (file,) = weight_files(out)
    with safe_open(file, "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118  # no mapping
    parameters = sum(math.prod(shape) for shape in shapes)
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    return f"""\
# tiny-shapes-pixels

A class-conditional diffusion pixel-space model, as ADM and IDDPM are, but of {SIDE_PX} px and \
{parameters:,} parameters ({file.stat().st_size / 1e6:.1f} MB in half precision): it draws one \
coloured shape on a background of another colour. `python -m training.pixels` trained it from \
scratch. It is there so that the worker's path of pixel models can be run, tested and looked at \
without a download.

![Pictures of {len(SAMPLED)} classes, a row for each setting]({SAMPLES_FILE})

Each column starts from the same noise. A `UNet2DModel` with self-attention at 8 x 8, where \
self-attention guidance reads it, and a `{scheduler["_class_name"]}` of the cosine schedule of \
IDDPM."""


def _usage() -> str:
    model = shipped_pixels().model_dump(mode="json", exclude_defaults=True)
    model["path"] = "worker/models/tiny-shapes-pixels"
    settings = json.dumps({"default": model}, indent=2)
    return f"""\
## Use

```bash
export SAG_MODELS='{settings}'
sag-worker run --device cpu
sag-worker submit --set class_labels={label_of("green", "star")} --wait --out .    # a green star
```

A request has `class_labels` in place of a prompt; null is no class, {NULL_CLASS}. Label = 10 x \
shape + colour:

- shapes: {", ".join(f"{number} {shape}" for number, shape in enumerate(SHAPES))}
- colours: {", ".join(f"{number} {colour}" for number, colour in enumerate(COLOURS))}"""


def _measurements(evaluation: Evaluation) -> str:
    rows = [_row(result) for result in evaluation.results]
    drawn = evaluation.drawn
    return f"""\
## What guidance does to it

{drawn.right.of} pictures, {drawn.right.of // len(CLASSES)} of each of the {len(CLASSES)} classes, \
{evaluation.steps} DDIM steps, the same noise in every row. *Right*: one shape, of the class's \
kind and colour, read off the pixels without a network, with Wilson's 95 % interval. *Distance*: \
the Fréchet distance to drawn pictures, as FID, but of pixel values at 8 x 8 instead of \
Inception's features, so that it counts colours and places rather than edges; smaller is better. \
Of as many drawn pictures {_percent(drawn)} are read right, and their distance is \
{drawn.frechet:.3f}.

{table(["`guidance_scale`", "`sag_scale`", "blur sigma", "right, %", "distance"], rows)}

{_sentence(evaluation)}"""


def _row(result: Result) -> list[str]:
    guidance = result.guidance
    sigma = f"{guidance.sag_blur_sigma:g}" if guidance.sag_scale else ""
    return [
        f"{guidance.guidance_scale:g}", f"{guidance.sag_scale:g}", sigma, _percent(result),
        f"{result.frechet:.3f}",
    ]  # fmt: skip


def _sentence(evaluation: Evaluation) -> str:
    """What self-attention guidance alone did: only where the intervals leave no doubt."""
    alone = [result for result in evaluation.results if result.guidance.guidance_scale <= 1]
    without, *with_it = sorted(alone, key=lambda result: result.guidance.sag_scale)
    nearest = min(with_it, key=lambda result: result.frechet)
    distances = f"({nearest.frechet:.3f} against {without.frechet:.3f} at best)"
    closer = "" if nearest.frechet < without.frechet else "at no setting "
    return (
        f"Without classifier-free guidance self-attention guidance {_shares(without, with_it)}, "
        f"and {closer}brings the pictures nearer to the drawn ones {distances}."
    )


def _shares(without: Result, with_it: Sequence[Result]) -> str:
    best = max(with_it, key=lambda result: result.right.share)
    worst = min(with_it, key=lambda result: result.right.share)
    plain = 100 * without.right.share
    if worst.right.high < without.right.low:
        share = 100 * worst.right.share
        return (
            f"lowers the share of right pictures at its worst ({share:.1f} against {plain:.1f} %)"
        )
    if best.right.low > without.right.high:
        share = 100 * best.right.share
        return f"raises the share of right pictures at its best ({share:.1f} against {plain:.1f} %)"
    return "does not change the share of right pictures beyond the intervals"


def _percent(result: Result) -> str:
    right = result.right
    return f"{100 * right.share:.1f} ({100 * right.low:.1f} to {100 * right.high:.1f})"


def _training(run: Record) -> str:
    (curve,) = run.curves
    libraries = ", ".join(f"{name} {version}" for name, version in run.run.libraries.items())
    return f"""\
## Training

![Loss over the steps]({CURVES_FILE})

{curve.steps:,} steps with batches of {denoiser.BATCH}, from {run.pictures:,} drawn pictures, \
{curve.minutes:.0f} minutes on {run.run.cores} cores ({run.run.cpu}), no accelerator, seed \
{run.run.seed}, {libraries}. AdamW with a cosine rate from {denoiser.PEAK_RATE:g}; it predicts \
the velocity; {100 * denoiser.DROPPED:.0f} % of the labels replaced by {NULL_CLASS}, no class; the \
weights shipped are an exponential average (decay {denoiser.EMA_DECAY})."""
