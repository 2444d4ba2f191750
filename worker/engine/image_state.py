"""One picture on its way: its latents, its own sampler and generator, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.engine import guidance

if TYPE_CHECKING:
    import torch

    from worker.engine.batch_scheduler import Bucket
    from worker.engine.job import Job
    from worker.engine.samplers import NoiseLevel, SamplerState


@dataclass(frozen=True)
class Degraded:
    """What the main pass of an evaluation leaves for the degraded one, each (1, c, h, w)."""

    #: Input of the main pass.
    main: torch.Tensor
    #: Input of the degraded pass.
    noisy: torch.Tensor
    #: What a network blind to the blur would answer there.
    expected: torch.Tensor
    #: Output of the main pass, guided by the prompt.
    guided: torch.Tensor


@dataclass
class ImageState:
    """State of one picture. Nothing of it lies on the pipeline."""

    job: Job
    seed: int
    bucket: Bucket
    sampling: SamplerState
    generator: torch.Generator
    #: (1, channels, height, width), at the scale of the sampler.
    latents: torch.Tensor
    #: (tokens, width); `negative` is None without classifier-free guidance.
    embeds: torch.Tensor
    negative: torch.Tensor | None
    #: Evaluations of the network that are done, and whole steps.
    evaluations: int = 0
    steps: int = 0
    degraded: Degraded | None = None
    #: The last whole x0 times alpha, for a preview; only where previews are asked for.
    clean: torch.Tensor | None = None

    @property
    def is_done(self) -> bool:
        """Whether the latents are final."""
        return self.evaluations == len(self.sampling.levels)

    @property
    def level(self) -> NoiseLevel:
        """The noise level of the evaluation that comes next or is half done."""
        return self.sampling.levels[self.evaluations]

    @property
    def is_self_guided(self) -> bool:
        """Whether SAG is on; latents too small for its blur go without."""
        large_enough = min(self.latents.shape[-2:]) >= guidance.LEAST_SIDE
        return self.job.sag_scale > 0 and large_enough

    @property
    def unconditional(self) -> torch.Tensor:
        """The embeddings of its first and of its degraded row; the prompt's without guidance."""
        return self.embeds if self.negative is None else self.negative

    @property
    def rows(self) -> int:
        """Rows of the UNet that it needs next."""
        return 1 if self.degraded is not None or self.negative is None else 2

    def noisy(self) -> torch.Tensor:
        """The network's input for the main pass."""
        scheduler = self.sampling.scheduler
        timestep = scheduler.timesteps[self.evaluations]
        scaled: torch.Tensor = scheduler.scale_model_input(self.latents, timestep)
        return scaled

    def advance(self, output: torch.Tensor, noisy: torch.Tensor) -> None:
        """End the evaluation with the guided `output` of the network at `noisy`."""
        level, sampling = self.level, self.sampling
        if self.job.preview_every:
            kind = sampling.kinds[0]
            self.clean = guidance.clean(kind, noisy, output, level.alpha, level.sigma)
        output = guidance.convert(output, noisy, level.alpha, level.sigma, sampling.kinds)
        scheduler = sampling.scheduler
        timestep = scheduler.timesteps[self.evaluations]
        stepped = scheduler.step(
            output.to(self.latents.dtype),
            timestep,
            self.latents,
            **self._extra(),
            return_dict=False,
        )
        self.latents, self.degraded = stepped[0], None
        self.evaluations += 1
        self.steps += sampling.is_step(self.evaluations)

    def _extra(self) -> dict[str, Any]:
        """What diffusers' own pipelines hand to a scheduler's `step`, where it takes it."""
        extra: dict[str, Any] = {}
        if "generator" in self.sampling.takes:
            extra["generator"] = self.generator
        if "eta" in self.sampling.takes:
            extra["eta"] = self.job.eta
        return extra
