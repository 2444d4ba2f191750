"""The engine as a side: its turns, with the time of its rounds. Runs in a side's process."""

from __future__ import annotations

import time
from statistics import mean, median
from typing import TYPE_CHECKING

from benchmarks import model as models
from benchmarks.bare import BareEngine
from benchmarks.host_time import HostTime
from benchmarks.record import rounded
from benchmarks.turn import Turn
from worker.engine.engine import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.model import Model
    from benchmarks.tasks import Task
    from worker.config.models import ModelSpec
    from worker.engine.loaded_model import LoadedModel

#: Stages of a daemon's result that the engine has, and their names in `Timing`.
STAGES = {"queued_s": "wait_s"} | {
    name: name for name in ("load_s", "encode_s", "denoise_s", "decode_s")
}


class EngineSide(BareEngine):
    """A bare engine whose rounds are timed; the model is loaded with the first task."""

    def __init__(self, model: Model) -> None:
        models.silence_libraries()
        self._on_cpu = model.device == "cpu"
        self._host_time = HostTime()
        self._unet_dtype = ""
        super().__init__(model, loader=self._load)

    def turn(self, tasks: Sequence[Task], at_once: int | None = None) -> Turn:
        """Submit tasks together, or never more than `at_once` unfinished."""
        self._host_time.begin()
        began_s = time.perf_counter()
        results = self.results(tasks, at_once)
        took_s = time.perf_counter() - began_s
        timings = [result.timing for result in results]
        return Turn(
            len(tasks) / took_s,
            [result.images[0].pixels for result in results],
            rounded(mean(result.batch for result in results)),
            {
                stage: median(getattr(each, name) for each in timings)
                for stage, name in STAGES.items()
            },
            self._host_time.ms_a_round() if self._on_cpu else None,
        )

    def unet_dtype(self) -> str:
        """The precision that the engine chose for the UNet; empty before the first task."""
        return self._unet_dtype

    def _load(
        self, spec: ModelSpec, device: str, offload: str, *, compiled: bool = False
    ) -> LoadedModel:
        loaded = load_model(spec, device, offload, compiled=compiled)
        self._unet_dtype = str(loaded.pipeline.unet.dtype).removeprefix("torch.")
        self._host_time.watch(loaded.pipeline)
        return loaded
