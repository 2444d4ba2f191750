"""Jobs for the oracle, and how far apart two latents are.

Differences are in parts of the largest latent, because few steps at a guidance of 3 give latents
of up to 150 and magnify the rounding of a UNet call, 1e-6, as much. Bounds are `jobs.CLOSE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.engine.jobs import job

if TYPE_CHECKING:
    import torch

    from worker.engine.job import Job

#: Steps in which a scheduler uses its highest order; the fourth order needs four, and IPNDM's first
#: step evaluates no UNet.
STEPS = {"pndm": 4, "lms": 4, "lms_karras": 4, "ipndm": 5}
#: Schedulers that are compared by day.
BY_DAY = ("ddim", "euler", "heun", "euler_a")


def named(name: str, **changes: Any) -> Job:
    """A job of enough steps for the scheduler's highest order."""
    return job(**({"scheduler": name, "num_inference_steps": STEPS.get(name, 3)} | changes))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in parts of the largest latent."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
