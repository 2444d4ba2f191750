"""Every sampler by its name, over the bundled model's own scheduler or another."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import diffusers

from tests.engine.cases import nightly
from worker.config.models import SHIPPED_MODEL
from worker.engine.sampling.samplers import SAMPLERS, make

if TYPE_CHECKING:
    from worker.engine.sampling.sampler_state import SamplerState

NAMES = sorted(SAMPLERS)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Numbers of steps by day and by night.
STEPS = [2, 5, 13, *nightly(3, 4, 8, 25, 30)]
CONFIG = diffusers.DDIMScheduler.load_config(SHIPPED_MODEL / "scheduler")


def own(kind: str = "DDIMScheduler", **options: Any) -> Any:
    """The bundled model's own scheduler, or one of another class on top of its configuration."""
    return getattr(diffusers, kind).from_config(CONFIG, **options)


@cache
def made(name: str, steps: int) -> SamplerState:
    """A sampler that is only read: KDPM2 takes a tenth of a second to make."""
    return make(name, own(), steps)
