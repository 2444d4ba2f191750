"""One evaluation of the plain loop: the network's x0 under both guidances, one row at a time.

The equations are those of Self-Attention Guidance (arXiv 2210.00939) in x0 form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from tests.engine.noise import Level
    from worker.engine.job import Job

#: A diffusers pipeline in fp32 on the CPU; diffusers has no types.
Pipeline: TypeAlias = Any
#: Arguments of the UNet for one row.
Row: TypeAlias = "dict[str, Any]"

#: Of each evaluation since `plain_loop.threshold_margin` began.
margins: list[float] = []


@dataclass
class Network:
    """The UNet as a denoiser at one noise level."""

    pipe: Pipeline
    channels: torch.Tensor | None
    level: Level
    layer: str

    def denoised(self, z: torch.Tensor, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Its x0 at `z`, and how much each token of the layer is looked at, (1, 1, h, w)."""
        unet, seen = self.pipe.unet, []
        block = unet.get_submodule(self.layer.split(".transformer_blocks")[0])
        attn = unet.get_submodule(self.layer)
        hooks = [
            part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            for part in (block, attn)
        ]
        given = z.float() if self.channels is None else torch.cat([z.float(), self.channels], 1)
        output = unet(given, self.level.timestep, **row).sample.double()
        for hook in hooks:
            hook.remove()
        picture, tokens = (each[:1] for each in seen)
        heads = (*tokens.shape[:2], attn.heads, -1)
        query, key = attn.to_q(tokens).reshape(heads), attn.to_k(tokens).reshape(heads)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        columns = scores.softmax(-1).mean(1).sum(1)  # over heads, then over queries
        return self.x0(z, output), columns.reshape(1, 1, *picture.shape[-2:])

    def x0(self, z: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What the network predicts, as x0."""
        a, s = self.level.a, self.level.s
        return {
            "epsilon": (z - s * output) / a, "v_prediction": a * z - s * output, "sample": output,
        }[self.pipe.scheduler.config.prediction_type]  # fmt: skip

    def output(self, z: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The inverse of `x0`."""
        a, s = self.level.a, self.level.s
        return {"epsilon": (z - a * x0) / s, "v_prediction": (a * z - x0) / s, "sample": x0}[
            self.pipe.scheduler.config.prediction_type
        ]


def guided_x0(
    network: Network, job: Job, z: torch.Tensor, rows: tuple[Row, Row], *, acts: bool
) -> torch.Tensor:
    """The network's x0 at `z` under both guidances; SAG where it `acts`."""
    opposite, prompt = rows
    x0_u, attention = network.denoised(z, opposite)
    x0 = x0_u
    if job.guidance_scale > 1:
        x0_c, _ = network.denoised(z, prompt)
        x0 = x0_u + job.guidance_scale * (x0_c - x0_u)
        if job.guidance_rescale > 0:
            wanted, found = network.output(z, x0_c), network.output(z, x0)
            share = job.guidance_rescale * float(wanted.std() / found.std())
            x0 = network.x0(z, (share + 1 - job.guidance_rescale) * found)
    if acts and job.sag_scale > 0 and min(z.shape[-2:]) > 4:  # not on smaller sides
        threshold = job.sag_mask_threshold
        margins.append(float((attention - threshold).abs().min()))
        mask = functional.interpolate((attention > threshold).double(), z.shape[-2:])
        x0_blurred = x0_u + mask * (_blur(x0_u, job.sag_blur_sigma) - x0_u)
        x_deg = z + network.level.a * (x0_blurred - x0_u)
        x0 = x0 + job.sag_scale * (x0_blurred - network.denoised(x_deg, opposite)[0])
    return x0


def _blur(x0: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian over 4 sigma to each side, or as far as can be mirrored at the edges."""
    radius = min(math.ceil(4 * sigma), min(x0.shape[-2:]) - 1)
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    line = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(x0, (radius,) * 4, mode="reflect")
    channels = x0.shape[1]
    return functional.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)
