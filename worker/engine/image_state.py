"""State of one image while it is denoised: latents, embeddings, sampler, random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from worker.engine.denoising import guidance

if TYPE_CHECKING:
    from worker.engine.batch_scheduler import Bucket
    from worker.engine.families.conditioning import Conditioning
    from worker.engine.initial_latents import Blend
    from worker.engine.jobs.job import Job
    from worker.engine.sampling.noise_levels import NoiseLevel
    from worker.engine.sampling.sampler_state import SamplerState


@dataclass(frozen=True)
class Degraded:
    """What the main pass of an evaluation hands to its degraded pass, each (1, c, h, w)."""

    #: UNet input of the main pass.
    main: torch.Tensor
    #: UNet input of the degraded pass.
    noisy: torch.Tensor
    #: UNet output expected for `noisy`, see `guidance.degrade`.
    expected: torch.Tensor
    #: Output of the main pass under classifier-free guidance.
    guided: torch.Tensor
    #: Learned variance of the main pass, where the UNet gives one.
    variance: torch.Tensor | None = None


@dataclass(eq=False)
class ImageState:
    """One image. The pipeline, which all jobs share, has none of its state."""

    job: Job
    seed: int
    bucket: Bucket
    sampler: SamplerState
    generator: torch.Generator
    #: Precision of the UNet, as torch names it.
    unet_dtype: str
    #: (1, channels, height, width), in the scale of the sampler.
    latents: torch.Tensor
    #: What the UNet gets of the prompt; `negative` is None without classifier-free guidance.
    conditioning: Conditioning
    negative: Conditioning | None
    #: Latents of the picture that it started from, (1, c, h, w).
    picture: torch.Tensor | None = None
    #: For inpainting by a UNet that knows no mask; inputs of one that does, (1, c, h, w).
    blend: Blend | None = None
    channels: torch.Tensor | None = None
    #: Completed evaluations of the UNet, and completed steps of the sampler.
    evaluations: int = 0
    steps: int = 0
    #: Set between the main and the degraded pass of an evaluation.
    degraded: Degraded | None = None
    #: alpha x0 of the last evaluation, (1, c, h, w), for a preview; None without previews.
    scaled_x0: torch.Tensor | None = None

    @property
    def is_done(self) -> bool:
        """Whether the latents are final."""
        return self.evaluations == len(self.sampler.levels)

    @property
    def level(self) -> NoiseLevel:
        """Noise level of the current evaluation."""
        return self.sampler.levels[self.evaluations]

    @property
    def uses_sag(self) -> bool:
        """Whether SAG acts in this step: not at scale 0, nor on latents too small to be blurred."""
        job, total = self.job, self.sampler.steps
        is_between = int(job.sag_start * total) <= self.steps < int(job.sag_stop * total)
        large = min(self.latents.shape[-2:]) >= guidance.MIN_SIDE
        return job.sag_scale > 0 and large and is_between

    @property
    def numbers(self) -> list[float]:
        """What the equations need of it: scales, noise level, threshold and rescale."""
        job, level = self.job, self.level
        return [
            job.guidance_scale, level.alpha, level.sigma, job.sag_scale, job.sag_mask_threshold,
            job.guidance_rescale,
        ]  # fmt: skip

    @property
    def unconditional(self) -> Conditioning:
        """Conditioning of the first and degraded row: the negative prompt's, if there is one."""
        return self.conditioning if self.negative is None else self.negative

    @property
    def encoded(self) -> list[torch.Tensor]:
        """What it has of the autoencoder's encodes, each (1, c, h, w)."""
        return [each for each in (self.picture, self.channels) if each is not None]

    @property
    def rows(self) -> int:
        """UNet rows of the next pass."""
        return 1 if self.degraded is not None or self.negative is None else 2

    def unet_input(self) -> torch.Tensor:
        """UNet input of the main pass, (1, c, h, w)."""
        scheduler = self.sampler.scheduler
        timestep = self.sampler.timestep(self.evaluations)
        scaled: torch.Tensor = scheduler.scale_model_input(self.latents, timestep)
        return scaled

    def step(
        self, output: torch.Tensor, noisy: torch.Tensor, variance: torch.Tensor | None = None
    ) -> None:
        """Complete the evaluation: give the guided UNet `output` at input `noisy` to the sampler.

        All are (1, c, h, w); a learned `variance` is for samplers that take one.
        """
        level, sampler = self.level, self.sampler
        if self.job.preview_every:
            self.scaled_x0 = guidance.scaled_x0(
                sampler.predictions[0], noisy, output, level.alpha, level.sigma
            )
        output = guidance.convert(output, noisy, level.alpha, level.sigma, sampler.predictions)
        if variance is not None and sampler.takes_variance:
            output = torch.cat([output, variance], dim=1)
        scheduler = sampler.scheduler
        stepped = scheduler.step(
            output.to(self.latents.dtype),
            sampler.timestep(self.evaluations),
            self.latents,
            **self._step_options(),
            return_dict=False,
        )
        self.latents, self.degraded = stepped[0], None
        self.evaluations += 1
        self.steps += sampler.is_step(self.evaluations)
        if self.blend is not None:
            weights = None if self.is_done else sampler.mixing[self.evaluations]
            self.latents = self.blend.apply(self.latents, weights)

    def _step_options(self) -> dict[str, Any]:
        """What diffusers' pipelines pass to a scheduler's `step` that accepts it."""
        options = {"generator": self.generator, "eta": self.job.eta}
        accepted = self.sampler.step_parameters
        return {name: value for name, value in options.items() if name in accepted}
