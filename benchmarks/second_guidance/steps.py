"""One step of many tasks under each guidance, over the engine's own UNet call. A side's process.

A step is everything from latents to guided output; the sampler, which is the same for all, is not.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from statistics import median
from typing import TYPE_CHECKING

import torch

from benchmarks import model as models
from benchmarks.second_guidance.measured import Measured
from benchmarks.second_guidance.perturbed_attention import PerturbedRows, layers, perturb
from worker.engine.denoising import guidance
from worker.engine.denoising.unet import NO_LORAS, BatchedUnet
from worker.engine.engine import load_model
from worker.engine.families.conditioning import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.model import Model
    from worker.engine.denoising.sag_attention import Attention

GUIDED, SECOND = 7.5, 0.75
#: Noise level of all tasks: alpha, sigma.
LEVEL = (0.8, 0.6)


class Steps:
    """The UNet with the tasks' latents, and a step under each guidance."""

    def __init__(self, model: Model, block: str) -> None:
        """PAG and SEG perturb the self-attention of `block`."""
        models.silence_libraries()
        loaded = load_model(model.spec, model.device, "none")
        self._model, self._pipe = model, loaded.pipeline
        self._unet = BatchedUnet(loaded, 64, 0, nullcontext)
        self._layers = layers(loaded.pipeline.unet, block)
        #: Rows of each UNet call of the step.
        self._calls: list[int] = []

    def measure(self, name: str, tasks: int, runs: int) -> Measured:
        """`runs` steps of `tasks` tasks under the guidance `name`, after an untimed one."""
        step: Callable[[int], torch.Tensor] = getattr(self, name)
        wall_s, cpu_s, on_cpu = [], [], self._model.device == "cpu"
        with torch.inference_mode():
            step(tasks)
            for _ in range(runs):
                self._calls.clear()
                began_s, began_cpu_s = time.perf_counter(), time.process_time()
                step(tasks)
                if not on_cpu:
                    torch.cuda.synchronize(self._model.device)
                wall_s.append(time.perf_counter() - began_s)
                cpu_s.append(time.process_time() - began_cpu_s)
        return Measured(median(wall_s), median(cpu_s) if on_cpu else None, tuple(self._calls))

    def none(self, tasks: int) -> torch.Tensor:
        """Classifier-free guidance alone: two rows for each task in one call."""
        output, _ = self._call(self._latents(tasks).repeat(2, 1, 1, 1))
        return self._guided(*output.chunk(2))

    def sag(self, tasks: int) -> torch.Tensor:
        """Two rows for each task, then one more in a call that needs the first's result."""
        noisy = self._latents(tasks)
        output, attention = self._call(noisy.repeat(2, 1, 1, 1), sag_rows=tasks)
        first, conditional = output.chunk(2)
        degraded, expected = self._degraded(noisy, first, attention)
        again, _ = self._call(degraded)
        return self._guided(first, conditional) + SECOND * (expected - again)

    def pag(self, tasks: int) -> torch.Tensor:
        """Three rows for each task in one call, the third with the identity as attention."""
        return self._perturbed(tasks, PerturbedRows(identity=range(2 * tasks, 3 * tasks)))

    def seg(self, tasks: int) -> torch.Tensor:
        """Three rows for each task in one call, the third with the mean of all queries."""
        return self._perturbed(tasks, PerturbedRows(blurred=range(2 * tasks, 3 * tasks)))

    def seg_blurred(self, tasks: int) -> torch.Tensor:
        """The same with a Gaussian of one cell, which is a convolution."""
        return self._perturbed(tasks, PerturbedRows(blurred=range(2 * tasks, 3 * tasks), sigma=1.0))

    def sag_and_pag(self, tasks: int) -> torch.Tensor:
        """Half of the tasks with SAG and half with PAG: two calls, two steps of those with PAG.

        The rows of a call: SAG's first and second, PAG's first, second and perturbed. In the next
        call SAG's degraded rows take the place of its two.
        """
        half = tasks // 2
        noisy = self._latents(half)
        rows = PerturbedRows(identity=range(4 * half, 5 * half))
        output, attention = self._call(noisy.repeat(5, 1, 1, 1), rows, sag_rows=half)
        first, conditional = output[: 2 * half].chunk(2)
        degraded, expected = self._degraded(noisy, first, attention)
        rows = PerturbedRows(identity=range(3 * half, 4 * half))
        output, _ = self._call(torch.cat([degraded, noisy.repeat(3, 1, 1, 1)]), rows)
        guided = self._guided(first, conditional) + SECOND * (expected - output[:half])
        return torch.cat([guided, self._with_perturbed(*output[half:].chunk(3))])

    def _perturbed(self, tasks: int, rows: PerturbedRows) -> torch.Tensor:
        output, _ = self._call(self._latents(tasks).repeat(3, 1, 1, 1), rows)
        return self._with_perturbed(*output.chunk(3))

    def _degraded(
        self, noisy: torch.Tensor, first: torch.Tensor, attention: Attention | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert attention is not None  # it was asked for
        height, width = noisy.shape[-2:]
        salient = guidance.mask(*attention, (height, width))
        alpha, sigma = (torch.full((len(noisy), 1, 1, 1), each).to(noisy) for each in LEVEL)
        return guidance.degrade("epsilon", noisy, first, salient, alpha, sigma)

    @staticmethod
    def _guided(first: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        return guidance.classifier_free(first, conditional, torch.tensor(GUIDED))

    def _with_perturbed(
        self, first: torch.Tensor, conditional: torch.Tensor, perturbed: torch.Tensor
    ) -> torch.Tensor:
        return self._guided(first, conditional) + SECOND * (conditional - perturbed)

    def _latents(self, tasks: int) -> torch.Tensor:
        side, channels = self._model.latent_side, self._pipe.unet.config.in_channels
        drawn = torch.randn(tasks, channels, side, side, generator=torch.Generator().manual_seed(0))
        return drawn.to(self._model.device)

    def _call(
        self, noisy: torch.Tensor, rows: PerturbedRows | None = None, sag_rows: int = 0
    ) -> tuple[torch.Tensor, Attention | None]:
        self._calls.append(len(noisy))
        width = self._pipe.unet.config.cross_attention_dim
        texts = torch.ones(len(noisy), self._model.tokens, width, device=noisy.device)
        with perturb(self._pipe.unet, self._layers, rows or PerturbedRows()):
            return self._unet(noisy, [500.0] * len(noisy), {TEXT: texts}, NO_LORAS, sag_rows)
