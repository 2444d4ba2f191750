"""Rounds of tasks with LoRA adapters by request, and what an adapter leaves when it is unloaded."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import lora
from benchmarks.cuda_dry_run import scenes
from worker.engine.device import warmup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cuda_dry_run.device import FakeCuda
    from benchmarks.cuda_dry_run.tally import Tally
    from worker.engine.job import Adapters
    from worker.engine.loaded_model import LoadedModel

#: Adapters of the tasks of a round, in turn. `several` are none, one and three, at other scales.
MIXES: dict[str, tuple[Adapters, ...]] = {
    "none": ((),),
    **{
        f"{count} in turn": tuple(((f"a{number}", 1.0),) for number in range(count))
        for count in (1, 4, 8)
    },
    "several": ((), (("a0", 0.5),), (("a1", 1.0), ("a0", -0.3), ("a2", 0.7))),
}
#: Files, of which as many are loaded at once.
FILES = 8
#: Steps of the tasks, which begin within two rounds.
STEPS = 2


@dataclass
class Found:
    """What rounds with adapters found."""

    #: A full round by the name of its mix.
    rounds: dict[str, Tally]
    #: Bytes that all of `FILES` take on the device.
    loaded_bytes: int
    #: What jobs failed with, and whether something is left of adapters that were unloaded.
    errors: list[str]


def run(
    device: FakeCuda,
    loaded: LoadedModel,
    full: Callable[[list[Tally]], Tally],
    tasks: int,
) -> Found:
    """Rounds of so many tasks of each mix on a model, then unload all; `full` chooses the round."""
    names = [name for name in loaded.family.networks if name != "vae"]
    networks = {name: getattr(loaded.pipeline, name) for name in names}
    found: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = lora.save(networks, Path(folder), FILES)
        rounds = scenes.Rounds(lambda: loaded, warmup.TRIED_ROWS[-1], adapters=files)
        for name, mix in MIXES.items():
            began = len(device.tallies)
            rounds.run(scenes.steady(("ddim",), tasks, STEPS, partial(_loras, mix)))
            found[name] = full(device.tallies[began:])
            if not any(mix):
                before_bytes = device.memory.alive_bytes
        loaded_bytes = device.memory.alive_bytes - before_bytes
        loaded.adapters.load(loaded.pipeline, rounds.spec, (), (), capacity=0)
    left_bytes = device.memory.alive_bytes - before_bytes
    rounds.close()
    left = [f"{left_bytes} bytes are left of adapters that were unloaded"] if left_bytes else []
    return Found(found, loaded_bytes, rounds.errors() + left)


def _loras(mix: tuple[Adapters, ...], number: int) -> Mapping[str, Any]:
    """Fields of task number `number`: the tasks of either pass have all of a mix in turn."""
    return {"loras": mix[number // 2 % len(mix)]}
