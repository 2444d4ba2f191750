"""What is computed around a UNet call in the two passes of an evaluation, for all of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from worker.engine.denoising import guidance
from worker.engine.image_state import Degraded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.image_state import ImageState


@dataclass(frozen=True)
class StepOutput:
    """A complete evaluation of an image, for `ImageState.step`; tensors are (1, c, h, w)."""

    image: ImageState
    #: With both guidances applied.
    output: torch.Tensor
    #: UNet input of the main pass.
    noisy: torch.Tensor
    #: Learned variance of the main pass, where the UNet gives one.
    variance: torch.Tensor | None = None


@dataclass(frozen=True)
class Blurring:
    """How the degraded pass of a model blurs x0."""

    #: Of the kernel, in cells; None is 4 sigma.
    radius: int | None
    #: x0 is clipped to -clip … clip before; None does not.
    clip: float | None


def place_in_call(image: ImageState) -> tuple[int, float]:
    """Order of the main pass: images with SAG are first, those with two rows side by side.

    Among images with SAG those with the same blur are side by side.
    """
    two_rows = image.negative is not None
    if image.uses_sag:
        return 1 if two_rows else 0, image.job.sag_blur_sigma
    return 2 if two_rows else 3, 0.0


def guided(
    first: torch.Tensor,
    conditional: torch.Tensor,
    scale: torch.Tensor,
    begin: int,
    rescale: torch.Tensor | None,
) -> torch.Tensor:
    """Outputs of the main pass, with classifier-free guidance where it is on.

    `first` has a row for each image, as `scale` and `rescale`, which is None where no image has it;
    `conditional` has those of the images from `begin` on.
    """
    end = begin + len(conditional)
    pairs = guidance.classifier_free(first[begin:end], conditional, scale[begin:end])
    if rescale is not None:
        pairs = guidance.rescaled(pairs, conditional, rescale[begin:end])
    if len(conditional) == len(first):
        return pairs
    return torch.cat([first[:begin], pairs, first[end:]])


def of_class(variances: torch.Tensor, mains: int, pairs: int, begin: int) -> torch.Tensor:
    """The learned variance of each of `mains` images: that of the row with its class.

    `variances` has the rows of the call; `pairs` images from `begin` on have a second one.
    """
    first, conditional = variances[:mains], variances[mains : mains + pairs]
    return torch.cat([first[:begin], conditional, first[begin + pairs :]])


def completed(
    second: Sequence[tuple[ImageState, Degraded]], blurred: torch.Tensor, sag_scale: torch.Tensor
) -> list[StepOutput]:
    """The evaluations that the degraded pass completes with its outputs `blurred`."""
    main = torch.cat([each.guided for _, each in second])
    expected = torch.cat([each.expected for _, each in second])
    outputs = main + sag_scale * (expected - blurred)
    return [
        StepOutput(image, outputs[row : row + 1], each.main, each.variance)
        for row, (image, each) in enumerate(second)
    ]


def degrade(
    evaluated: Sequence[StepOutput],
    first: torch.Tensor,
    terms: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    blurring: Blurring,
) -> None:
    """Set `degraded` of the first images of a main pass.

    `evaluated` are its outputs under classifier-free guidance, `first` the UNet's first rows;
    `terms` are mask, alpha and sigma.
    """
    rows = len(evaluated)
    images = [each.image for each in evaluated]
    salient, alpha, sigma = terms
    degraded, expected = guidance.degrade(
        images[0].sampler.predictions[0],
        torch.cat([each.noisy for each in evaluated]),
        first[:rows],
        salient,
        alpha[:rows],
        sigma[:rows],
        partial(
            guidance.blur_rows,
            sigmas=[image.job.sag_blur_sigma for image in images],
            radius=blurring.radius,
        ),
        blurring.clip,
    )
    for row, each in enumerate(evaluated):
        own = slice(row, row + 1)
        each.image.degraded = Degraded(
            each.noisy, degraded[own], expected[own], each.output, each.variance
        )
