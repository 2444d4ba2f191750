"""The model card: `README.md` and its two pictures, written from the files beside the weights.

Every figure comes from `training.json`, `evaluation.json`, the weights or the training code.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from safetensors import safe_open

from training import chart, denoiser, evaluate, gallery, record, vae
from training.export import weight_files
from training.findings import limits, measurements, table
from training.judge import judge
from training.sampling import Sampling, draw, load
from training.shapes import COLOURS, HELD_OUT_ONE_IN, PLACES, RELATIONS, SHAPES, SIDE_PX

if TYPE_CHECKING:
    from pathlib import Path

    from training.evaluate import Evaluation
    from training.record import Record

FILE, SAMPLES_FILE, CURVES_FILE = "README.md", "samples.png", "curves.png"
SAMPLES = 24
#: What the sample pictures are drawn with; the default of diffusers' own pipeline.
SAMPLES_SAG_SCALE = 0.75
CURVES = {
    "vae": ("reconstruction", "Autoencoder: L1 + L2 over the steps"),
    "denoiser": ("noise", "UNet and text encoder: squared error of the noise"),
}
FRONT = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
language: en
tags: [stable-diffusion, self-attention-guidance, tiny, synthetic]
inference: false
---"""


def write(out: Path) -> None:
    """Write the card, its sample pictures and its curves into `out`."""
    _samples(out, evaluate.read(out))
    panels = [(curve, *CURVES[curve.stage]) for curve in record.read(out).curves]
    chart.draw(panels).save(out / CURVES_FILE, optimize=True)
    (out / FILE).write_text(text(out))


def text(out: Path) -> str:
    """The card's Markdown, from the files in `out`."""
    evaluation, run = evaluate.read(out), record.read(out)
    sections = (
        FRONT,
        _introduction(evaluation),
        _usage(evaluation),
        measurements(evaluation),
        limits(evaluation),
        _data(run),
        _architecture(out),
        _training(run),
        "## Licence\n\nApache-2.0, as the repository. No other data or weights went into it.",
    )
    return "\n\n".join(sections) + "\n"


def _samples(out: Path, evaluation: Evaluation) -> None:
    scenes = evaluate.held_out_scenes(evaluate.PROMPTS, evaluate.PROMPTS_SEED)[:SAMPLES]
    sampling = Sampling(evaluation.guidance_scale, SAMPLES_SAG_SCALE)
    pictures = draw(load(out), [scene.caption for scene in scenes], sampling)
    entries = [
        (picture, scene.caption, judge(picture, scene).everything)
        for picture, scene in zip(pictures, scenes, strict=True)
    ]
    gallery.grid(entries).save(out / SAMPLES_FILE, optimize=True)


def _introduction(evaluation: Evaluation) -> str:
    return f"""\
# tiny-shapes

A Stable Diffusion of a thousandth of the size, with every part of the real one: it draws one or \
two coloured shapes on a coloured background, {SIDE_PX} px square, and was trained from scratch \
by `python -m training`. It is there so that the worker, its tests and its demonstration run on \
real prompts without a download, and so that a test can ask whether a picture shows what was \
asked for.

![{SAMPLES} pictures with their prompts]({SAMPLES_FILE})

The first {SAMPLES} prompts of the evaluation below, none of which was trained on, one picture \
each, at `guidance_scale` {evaluation.guidance_scale:g} and `sag_scale` {SAMPLES_SAG_SCALE:g}. \
Prompts in red mark the pictures that are wrong."""


def _usage(evaluation: Evaluation) -> str:
    return f"""\
## Use

```python
from diffusers import StableDiffusionSAGPipeline

pipeline = StableDiffusionSAGPipeline.from_pretrained("worker/models/tiny-shapes")
prompt = "a large red star on a blue background"
guidance = {{"guidance_scale": {evaluation.guidance_scale:g}, "sag_scale": {SAMPLES_SAG_SCALE:g}}}
pipeline(prompt, num_inference_steps={evaluation.steps}, **guidance).images[0].save("star.png")
```

Its default `guidance_scale` is **{evaluation.guidance_scale:g}**, not Stable Diffusion's 7.5. It \
knows these words:

- colours: {", ".join(COLOURS)}
- shapes: {", ".join(SHAPES)}
- one shape: "a [small|large] *colour* *shape* [{"|".join(filter(None, PLACES))}] on a *colour* \
background" (a large one has no place)
- two shapes: "a *colour* *shape* {"|".join(RELATIONS)} a *colour* *shape* on a *colour* \
background" """.rstrip()


def _data(run: Record) -> str:
    return f"""\
## Data

{run.pictures:,} pictures with {run.distinct_captions:,} distinct captions, drawn by \
`training/shapes.py` with Pillow at several times the size and reduced: {len(COLOURS)} colours, \
{len(SHAPES)} shapes, moved and scaled a little. One caption in {HELD_OUT_ONE_IN}, chosen by a \
hash, is kept out of training; the prompts above are of those."""


def _architecture(out: Path) -> str:
    rows = []
    for file in weight_files(out):
        with safe_open(file, "pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118  # no mapping
            kind = weights.get_slice(next(iter(weights.keys()))).get_dtype()
        config = json.loads((file.parent / "config.json").read_text())
        parameters = sum(math.prod(shape) for shape in shapes)
        name = config.get("_class_name") or config["architectures"][0]
        size = f"{file.stat().st_size / 1e6:.1f} MB, {kind}"
        rows.append([file.parent.name, f"`{name}`", f"{parameters:,}", size])
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    head = ["part", "class", "parameters", "file"]
    return f"""\
## Architecture

{table(head, rows)}

The UNet has self- and cross-attention at both ends and in its mid block, where self-attention \
guidance reads it, as the real one has. The text encoder was trained along with it. Scheduler: \
`{scheduler["_class_name"]}`, {scheduler["beta_schedule"]} betas {scheduler["beta_start"]} to \
{scheduler["beta_end"]}, {scheduler["prediction_type"]} prediction, \
{scheduler["timestep_spacing"]} spacing."""


def _training(run: Record) -> str:
    rows = [
        [curve.stage, f"{curve.steps:,}", str(batch), f"{rate:g}", f"{curve.minutes:.0f} min"]
        for curve, batch, rate in zip(
            run.curves,
            (vae.BATCH, denoiser.BATCH),
            (vae.PEAK_RATE, denoiser.PEAK_RATE),
            strict=True,
        )
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in run.run.libraries.items())
    return f"""\
## Training

![Losses over the steps]({CURVES_FILE})

{table(["stage", "steps", "batch", "peak rate", "time"], rows)}

On {run.run.cores} cores ({run.run.cpu}), no accelerator, seed {run.run.seed}, {libraries}. \
AdamW with a cosine rate; {100 * denoiser.DROPPED:.0f} % of the captions dropped for \
classifier-free guidance; the weights shipped are an exponential average (decay \
{denoiser.EMA_DECAY}). {denoiser.HISTORY}"""
