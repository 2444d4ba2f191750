"""State of one image while it is denoised: latents, embeddings, sampler, random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.engine import guidance

if TYPE_CHECKING:
    import torch

    from worker.engine.batch_scheduler import Bucket
    from worker.engine.families.conditioning import Conditioning
    from worker.engine.job import Job
    from worker.engine.noise_levels import NoiseLevel
    from worker.engine.samplers import SamplerState


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
        """Whether SAG is on: not at scale 0, nor for latents that are too small to be blurred."""
        return self.job.sag_scale > 0 and min(self.latents.shape[-2:]) >= guidance.MIN_SIDE

    @property
    def unconditional(self) -> Conditioning:
        """That of the first and of the degraded row; the prompt's own without guidance."""
        return self.conditioning if self.negative is None else self.negative

    @property
    def rows(self) -> int:
        """UNet rows of the next pass."""
        return 1 if self.degraded is not None or self.negative is None else 2

    def unet_input(self) -> torch.Tensor:
        """UNet input of the main pass, (1, c, h, w)."""
        scheduler = self.sampler.scheduler
        timestep = scheduler.timesteps[self.evaluations]
        scaled: torch.Tensor = scheduler.scale_model_input(self.latents, timestep)
        return scaled

    def step(self, output: torch.Tensor, noisy: torch.Tensor) -> None:
        """Complete the evaluation: give the guided UNet `output` at input `noisy` to the sampler.

        Both are (1, c, h, w).
        """
        level, sampler = self.level, self.sampler
        if self.job.preview_every:
            self.scaled_x0 = guidance.scaled_x0(
                sampler.predictions[0], noisy, output, level.alpha, level.sigma
            )
        output = guidance.convert(output, noisy, level.alpha, level.sigma, sampler.predictions)
        scheduler = sampler.scheduler
        stepped = scheduler.step(
            output.to(self.latents.dtype),
            scheduler.timesteps[self.evaluations],
            self.latents,
            **self._step_options(),
            return_dict=False,
        )
        self.latents, self.degraded = stepped[0], None
        self.evaluations += 1
        self.steps += sampler.is_step(self.evaluations)

    def _step_options(self) -> dict[str, Any]:
        """What diffusers' pipelines pass to a scheduler's `step` that accepts it."""
        options = {"generator": self.generator, "eta": self.job.eta}
        accepted = self.sampler.step_parameters
        return {name: value for name, value in options.items() if name in accepted}
