"""What tasks may have beside prompt and scales: SAG's parameters, pictures to start from, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_contracts.request import ETA_SCHEDULERS
from benchmarks.cuda_dry_run.scenes import Arrival, job

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of SAG, in turn; equal sigmas are blurred together, so there are several of each.
_SIGMAS, _THRESHOLDS, _RESCALES = (1.0, 0.5, 1.0, 3.0), (1.0, 0.8, 1.3), (0.0, 0.7)
#: Shares of the steps between which SAG acts, in turn.
_WINDOWS = ((0.0, 1.0), (0.25, 0.75))
#: Of a picture that is painted over, and of all noise, where a model draws nothing for it.
_STRENGTHS = (0.75, 1.0)
#: Samplers that can't begin with a picture.
_FROM_NOISE = ("ipndm",)


def sag_parameters(number: int) -> dict[str, Any]:
    """SAG's parameters of task number `number`; neighbours differ in all of them."""
    return {
        "sag_blur_sigma": _SIGMAS[number % len(_SIGMAS)],
        "sag_mask_threshold": _THRESHOLDS[number % len(_THRESHOLDS)],
        "guidance_rescale": _RESCALES[number % len(_RESCALES)],
    }


def picture(number: int, size_px: tuple[int, int], *, mask: bool) -> dict[str, Any]:
    """A picture of one colour to start from, and a mask over its upper half."""
    height, width = size_px
    given = {
        "height": height,
        "width": width,
        "image": bytes([number % 256]) * (3 * height * width),
        "strength": _STRENGTHS[number % len(_STRENGTHS)] if mask else _STRENGTHS[0],
    }
    upper = (height // 2) * width
    masked = {"mask_image": b"\xff" * upper + b"\x00" * (height * width - upper)} if mask else {}
    return given | masked


def varied(
    names: Sequence[str],
    steps: int,
    sizes_px: Sequence[tuple[int, int]],
    *,
    inpainting: bool,
) -> list[Arrival]:
    """Each sampler once, with a picture where it takes one, and with SAG's parameters.

    Two of three have a mask, and all of them for a model made for `inpainting`. Each saves
    checkpoints.
    """
    arrivals = []
    for number, name in enumerate(names):
        if name in _FROM_NOISE:
            continue
        changes = sag_parameters(number) | {
            "num_inference_steps": steps,
            "checkpoint_every": 2,
            "preview_every": 2 if number % 5 == 0 else 0,  # every fifth
            "negative_prompts": ("grey",) if number % 2 else (),
            "output_type": ("pil", "latent")[number % 2],
            "eta": 0.5 if name in ETA_SCHEDULERS else 0.0,
        }
        changes["sag_start"], changes["sag_stop"] = _WINDOWS[number % len(_WINDOWS)]
        mask = inpainting or number % 3 > 0
        changes |= picture(number, sizes_px[number % len(sizes_px)], mask=mask)
        arrivals.append(Arrival(number % 7, job(2000 + number, name, **changes)))
    return arrivals
