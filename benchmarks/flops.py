"""Which share of the device's matrix peak the UNet reaches, against rows in one call.

The work of a call is counted by torch's FlopCounterMode; the peak is the best of several square
matrix products in the same precision, measured in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import chart, model, record, report
from benchmarks import unet as unets
from benchmarks.sides import Spread

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.model import Model
    from benchmarks.record import Cell, Result

#: Edges of the matrices whose product is timed: the best one counts.
CPU_EDGES, GPU_EDGES = (512, 1024, 2048, 4096), (2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Point:
    """Calls of one number of rows."""

    rows: int
    flop: int
    seconds: float
    peak_flop_s: float

    @property
    def share(self) -> float:
        """Of the peak, in percent."""
        return 100 * self.flop / self.seconds / self.peak_flop_s

    def row(self) -> dict[str, Cell]:
        """As a row of the result."""
        return {
            "rows": self.rows,
            "gflop": record.rounded(self.flop / 1e9),
            "call_ms": record.rounded(self.seconds * 1e3),
            "ms_a_row": record.rounded(self.seconds / self.rows * 1e3),
            "tflop_per_s": record.rounded(self.flop / self.seconds / 1e12),
            "share_of_peak_percent": record.rounded(self.share),
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--runs", type=int, default=9, help="calls whose median counts")
    parser.add_argument("--edges", type=int, nargs="+", help="matrices of the peak")
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with model.chosen(arguments) as chosen, torch.no_grad():
        machine = record.machine(chosen.device)
        edges = arguments.edges or (CPU_EDGES if chosen.device == "cpu" else GPU_EDGES)
        options = record.options(
            runs=arguments.runs, edges=edges, latent_side=chosen.latent_side, dtype=chosen.dtype
        )
        edge, peak_flop_s = peak(chosen, edges, arguments.runs)
        print(f"peak: {peak_flop_s / 1e12:.4g} TFLOP/s at {edge} x {edge}")
        unet = unets.load(chosen)
        points = []
        for rows in arguments.rows:
            given = unets.inputs(chosen, unet, rows)
            took_s = unets.seconds(partial(unet, *given), chosen.device, arguments.runs)
            points.append(Point(rows, flop_of(unet, given), took_s, peak_flop_s))
            print(points[-1].row())
    best = max(points, key=lambda point: point.share)
    result = record.Result(
        name="flops-sd15" if arguments.sd15 else "flops",
        title="Share of the device's matrix peak that the UNet reaches",
        headline=f"{best.share:.0f} % of the peak at {best.rows} rows in a call, "
        f"{points[0].share:.0f} % at {points[0].rows}; the peak, {peak_flop_s / 1e12:.4g} TFLOP/s, "
        f"is a product of matrices of {edge} x {edge}.",
        model=chosen.name,
        machine=machine,
        options=options,
        rows=[point.row() for point in points],
    )
    report.publish(result, _plot(result, points), arguments.out)


def peak(model: Model, edges: Sequence[int], runs: int) -> tuple[int, float]:
    """The edge of the fastest product, and its FLOP/s: a multiplication and an addition are two."""
    found = {}
    for edge in edges:
        one, other = (
            torch.randn(edge, edge, device=model.device, dtype=model.dtype) for _ in range(2)
        )
        found[2 * edge**3 / unets.seconds(partial(torch.mm, one, other), model.device, runs)] = edge
    best = max(found)
    return found[best], best


def flop_of(unet: Any, given: unets.Inputs) -> int:  # noqa: ANN401  # diffusers has no types
    """Of one call, counted with attention spelt out: the counter knows no fused one on the CPU."""
    processors = dict(unet.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    try:
        with FlopCounterMode(display=False) as counter:
            unet(*given)
    finally:
        unet.set_attn_processor(processors)
    return int(counter.get_total_flops())


def _plot(result: Result, points: Sequence[Point]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    shares = [Spread(point.share, point.share, point.share) for point in points]
    counts = [point.rows for point in points]
    labels = [f"{point.share:.0f} %\n{point.seconds / point.rows * 1e3:.3g} ms" for point in points]
    chart.lines(axes, counts, {"share": shares}, labels)
    axes.set_ylim(0, max(100.0, *(point.share * 1.15 for point in points)))
    axes.set_xlabel("rows in one UNet call")
    axes.set_ylabel("share of the matrix peak, %; time of a row")
    return drawn
