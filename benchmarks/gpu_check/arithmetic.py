"""Part: the share of the device's matrix peak that calls of the UNet reach."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import flops
from benchmarks import unet as unets
from benchmarks.gpu_check import given

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

#: Calls and products whose median counts.
RUNS = 5


def run(setting: Setting, found: Finding) -> None:
    """Time the peak, then calls; their work is counted once, for one row."""
    model = setting.sd15()
    with torch.no_grad():
        edge, peak_flop_s = flops.peak(model, setting.edges, RUNS)
        found.number("peak_tflop_per_s", peak_flop_s / 1e12)
        unet = unets.load(model)
        if setting.on_gpu:
            unet.to(memory_format=torch.channels_last)  # as the engine has it
        flop = flops.flop_of(unet, unets.inputs(model, unet, 1))
        found.number("tflop_a_row", flop / 1e12)
        for rows in setting.flop_rows:
            call = partial(unet, *unets.inputs(model, unet, rows))
            point = flops.Point(
                rows, rows * flop, unets.seconds(call, setting.device, RUNS), peak_flop_s
            )
            found.row(**point.row())
            found.number(f"share_percent_at_{rows}", point.share)
            found.headline(
                f"{point.share:.0f} % of the peak at {rows} rows; the peak is "
                f"{peak_flop_s / 1e12:.4g} TFLOP/s, a product of matrices of {edge} x {edge}."
            )
    found.note(
        f"A row at {setting.size_px} px is {flop / 1e12:.3g} TFLOP; a picture of {setting.steps} "
        f"steps takes {given.ROWS_A_STEP * setting.steps} rows. The goals compare that with the "
        "pictures a second of the whole engine."
    )
