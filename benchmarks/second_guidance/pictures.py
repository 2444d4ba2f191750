"""What SAG, PAG and SEG do to the bundled model's pictures, judged by training's judge.

Prompts that training never saw, one picture each, 25 DDIM steps, the same noise everywhere. SAG and
PAG are diffusers' own pipelines; SEG is the prototype's row in the latter.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionSAGPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from benchmarks import chart, model, process, record, report
from benchmarks.second_guidance.perturbed_attention import PerturbedRows, layers, perturb
from benchmarks.sides import Spread
from training.evaluate import PROMPTS_SEED, held_out_scenes
from training.judge import Verdict, judge
from training.shares import of_verdicts
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.figure import Figure
    from PIL import Image

    from benchmarks.record import Cell, Result

#: Prompts in one call of a pipeline.
BATCH = 25
STEPS = 25
#: The n-th picture starts from the noise of this seed plus n, as in training's evaluation.
SEED = 1000


@dataclass(frozen=True)
class Column:
    """One way to draw all pictures."""

    guidance_scale: float
    guidance: str
    scale: float
    #: Block whose self-attention is perturbed.
    block: str = "mid_block"


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and how."""
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[3.0, 1.0])
    parser.add_argument("--sag-scales", type=float, nargs="+", default=[0.75, 1.0])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0], help="PAG and SEG")
    parser.add_argument("--blocks", nargs="+", default=["mid_block", "up_blocks"])


def run(arguments: argparse.Namespace) -> None:
    """Draw, judge and save."""
    result = record.Result(
        name="guidance-pictures",
        title=f"Pictures right, of {arguments.prompts} prompts that training never saw",
        headline="Share of pictures right in percent with Wilson's 95 % interval, and mean change "
        "of a value, of 255, against the same picture without a second guidance.",
        model="tiny-shapes",
        machine=process.once("torch", record.machine, "cpu"),
        options=record.options(prompts=arguments.prompts, steps=STEPS),
        rows=[],
    )
    with process.start("the pipelines", Pictures, arguments.prompts) as side:
        for column in columns(arguments):
            result.rows.append(asdict(column) | side.remote(Pictures.shares)(column))
            print(result.rows[-1], flush=True)
            record.save(result, arguments.out)
    report.publish(result, _plot(result), arguments.out)


def columns(arguments: argparse.Namespace) -> list[Column]:
    """What is drawn, for each guidance scale: none first, which the others are compared with."""
    found: list[Column] = []
    for guided in arguments.guidance_scales:
        found.append(Column(guided, "none", 0.0))
        found += [Column(guided, "sag", scale) for scale in arguments.sag_scales]
        found += [
            Column(guided, name, scale, block)
            for block in arguments.blocks
            for name in ("pag", "seg")
            for scale in arguments.scales
        ]
    return found


class Pictures:
    """Both pipelines of diffusers, and the pictures without a second guidance."""

    def __init__(self, prompts: int) -> None:
        model.silence_libraries()
        self._scenes = held_out_scenes(prompts, PROMPTS_SEED)
        self._sag = StableDiffusionSAGPipeline.from_pretrained(SHIPPED_MODEL)
        self._pag = StableDiffusionPAGPipeline(
            **self._sag.components, requires_safety_checker=False
        )
        for pipeline in (self._sag, self._pag):
            pipeline.set_progress_bar_config(disable=True)
        self._plain: dict[float, list[Image.Image]] = {}

    def shares(self, column: Column) -> dict[str, Cell]:
        """The shares of a column's pictures, in percent, and how far they are from plain ones."""
        captions = [scene.caption for scene in self._scenes]
        drawn: list[Image.Image] = []
        for start in range(0, len(captions), BATCH):
            drawn += self._draw(column, captions[start : start + BATCH], SEED + start)
        plain = self._plain.setdefault(column.guidance_scale, drawn)
        verdicts: list[Verdict] = [
            judge(picture, scene) for picture, scene in zip(drawn, self._scenes, strict=True)
        ]
        change = (_pixels(drawn) - _pixels(plain)).abs().mean()
        found = of_verdicts(verdicts)
        shares = {name: round(100 * found[name].share, 1) for name in ("background", "shape")}
        everything = found["everything"]
        bounds = Spread(everything.share * 100, everything.low * 100, everything.high * 100)
        return (
            shares | bounds.cells("everything") | {"change_of_255": record.rounded(float(change))}
        )

    def _draw(self, column: Column, prompts: list[str], seed: int) -> list[Image.Image]:
        options: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "guidance_scale": column.guidance_scale,
            "generator": [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))],
        }
        if column.guidance in ("none", "sag"):
            scale = column.scale
            return list(self._sag(prompts, sag_scale=scale, **options).images)
        self._pag.set_pag_applied_layers(column.block)
        perturbed: AbstractContextManager[None] = nullcontext()
        if column.guidance == "seg":  # the pipeline's rows and equations, with attention of ours
            usual = AttnProcessor2_0()
            self._pag.set_pag_applied_layers(column.block, (usual, usual))
            before = len(prompts) * (2 if column.guidance_scale > 1 else 1)
            rows = PerturbedRows(blurred=range(before, before + len(prompts)))
            names = layers(self._pag.unet, column.block)
            perturbed = perturb(self._pag.unet, names, rows)
        with perturbed:
            return list(self._pag(prompts, pag_scale=column.scale, **options).images)


def _pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    flat = [
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures
    ]
    return torch.stack(flat).float()


def _plot(result: Result) -> Figure:
    drawn, (axes,) = chart.figure(result)
    found = [
        [row[name] for name in ("everything", "everything_low", "everything_high")]
        for row in result.rows
    ]
    bounds = [Spread(*(each for each in row if isinstance(each, float))) for row in found]
    names = [
        f"w {row['guidance_scale']:g}\n{row['guidance']}\n{row['scale']:g}\n{str(row['block'])[:3]}"
        for row in result.rows
    ]
    chart.bars(axes, names, {"everything right": bounds}, [""] * len(names))
    axes.set_ylim(0, 105)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_ylabel("pictures right, %")
    return drawn
