"""Samplers of diffusers that are known and not served, and why: docs/adr/0008."""

from __future__ import annotations

from worker.errors import UnsupportedSchedulerError

_NO_SEED = (
    "its noise, from a Brownian tree, cannot be seeded for each task on every device;"
    " dpmpp_2m_sde solves the same equation"
)
_EDM = (
    "it is for networks with EDM's preconditioning, and none is served;"
    " euler_karras makes the same steps with others"
)
#: By wire name, and by class of diffusers.
_REASONS = {
    "dpmpp_sde": _NO_SEED,
    "dpmpp_sde_karras": _NO_SEED,
    "DPMSolverSDEScheduler": _NO_SEED,
    "edm_euler": _EDM,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
}


def why(name: str) -> str | None:
    """The reason, as the end of a sentence; None for a sampler that is served, or not known."""
    return _REASONS.get(name)


def refusal(name: str, served: list[str]) -> UnsupportedSchedulerError:
    """The error of a task whose `scheduler` is none of those that are served."""
    reason = why(name)
    what = (
        f"scheduler {name!r} is not served: {reason}" if reason else f"unknown scheduler {name!r}"
    )
    message = f"{what}; supported are {', '.join(served)}"
    return UnsupportedSchedulerError(message, where="scheduler", served=served)
