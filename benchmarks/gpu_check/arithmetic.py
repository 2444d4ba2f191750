"""Part: the share of the device's matrix peak that calls of the UNet reach."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import flops
from benchmarks import unet as unets
from benchmarks.gpu_check import given

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

#: Calls and products whose median counts.
RUNS = 5
#: Layouts of the UNet's convolutions; the engine's on a GPU is first.
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
#: Calls before a graph is captured, as torch asks for.
CALLS_BEFORE_CAPTURE = 3


def run(setting: Setting, found: Finding) -> None:
    """Time the peak, then calls; their work is counted once, for one row."""
    model = setting.sd15()
    with torch.no_grad():
        edge, peak_flop_s = flops.peak(model, setting.edges, RUNS)
        found.number("peak_tflop_per_s", peak_flop_s / 1e12)
        unet = unets.load(model)
        flop = flops.flop_of(unet, unets.inputs(model, unet, 1))
        found.number("tflop_a_row", flop / 1e12)
        for layout in LAYOUTS if setting.on_gpu else ("contiguous",):
            unet.to(memory_format=LAYOUTS[layout])
            for rows in setting.flop_rows:
                call = partial(unet, *unets.inputs(model, unet, rows))
                took_s = unets.seconds(call, setting.device, RUNS)
                point = flops.Point(rows, rows * flop, took_s, peak_flop_s)
                replay_s = _replay_s(call, setting.device) if setting.on_gpu else None
                found.row(layout=layout, **point.row(), graph_s=replay_s)
                if layout == next(iter(LAYOUTS)) or not setting.on_gpu:
                    found.number(f"share_percent_at_{rows}", point.share)
                    found.headline(
                        f"{point.share:.0f} % of the peak at {rows} rows; the peak is "
                        f"{peak_flop_s / 1e12:.4g} TFLOP/s, a product of matrices of "
                        f"{edge} x {edge}."
                    )
    found.note(
        f"A row at {setting.size_px} px is {flop / 1e12:.3g} TFLOP; a picture of {setting.steps} "
        f"steps takes {given.ROWS_A_STEP * setting.steps} rows. The goals compare that with the "
        "pictures a second of the whole engine."
    )
    found.note("`graph s` is the same call replayed as a CUDA graph: what launches cost the host.")


def _replay_s(call: Callable[[], object], device: str) -> float:
    """Median seconds of a call that is replayed as a CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(CALLS_BEFORE_CAPTURE):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return unets.seconds(graph.replay, device, RUNS)
