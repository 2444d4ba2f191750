"""The models of the sweep, in one batch: every family, a single file, adapters by request."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers

from tests.engine import lora_files, oracle, original_layout
from tests.engine.jobs import SPEC, Rounds
from tests.engine.random_requests import under_sd15_noise
from tests.engine.small_models import save_inpainting, save_pixels, save_xl, spec
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.batch import Batch
from worker.engine.model_cache import ModelCache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from worker.engine.jobs.job import Job

#: Adapters of a request: none, one, and two, of attention, convolutions and text encoders.
LORAS = ((), (), (("ink", 1.0),), (("oil", 0.7),), (("wax", 0.9), ("ink", -0.5)))
_FILES: dict[str, tuple[lora_files.Format, dict[str, str]]] = {
    "ink": ("peft", {}),
    "oil": ("kohya", {"unet": lora_files.CONVOLUTIONS}),
    "wax": ("diffusers", {"texts": lora_files.TEXTS}),
}
#: Adapters of a model that are loaded at once: not all of them.
MAX_ADAPTERS = 2


@dataclass
class Swept:
    """One model as the engine loads it, and pipelines by which its requests are made alone."""

    own: ModelSpec
    rounds: Rounds
    #: What each adapter adds.
    weights: Mapping[str, list[lora_files.Layer]] = field(default_factory=dict)
    _merged: dict[tuple[tuple[str, float], ...], Any] = field(default_factory=dict)

    def pipe(self, wanted: Job) -> Any:
        """The pipeline of a job: with the weights of its adapters added to the model's."""
        if wanted.loras not in self._merged:
            pipe = self.rounds.pipe
            if wanted.loras:
                pipe = copy.deepcopy(self._merged[()])
                for name, scale in wanted.loras:
                    lora_files.merge(pipe, self.weights[name], scale or 0.0)
            self._merged[wanted.loras] = pipe
        return self._merged[wanted.loras]

    def alone(self, wanted: Job) -> torch.Tensor:
        """A job's latents, or pixels, by the plain loop."""
        return oracle.alone(self.pipe(wanted), wanted)


class Company(Rounds):
    """A batch over several loaded models."""

    def __init__(self, models: Mapping[str, Swept], max_batch_rows: int) -> None:
        super().__init__()
        loaded = {name: each.rounds.runner.model for name, each in models.items()}
        specs = {name: each.own.model_copy(update={"path": name}) for name, each in models.items()}
        self.runners = ModelCache(
            specs, lambda own: loaded[own.path], len(models), max_batch_rows, MAX_ADAPTERS
        )
        self.batch = Batch(self.runners, lambda call, *args: call(*args))


def models_in(folder: Path) -> Mapping[str, Swept]:
    """One of each kind, with noise schedules that magnify no rounding."""
    file = original_layout.save(
        original_layout.tensors_of(SHIPPED_MODEL), folder / "sd.safetensors"
    )
    single = SPEC.model_copy(update={"path": str(file), "config": str(SHIPPED_MODEL)})
    learned = diffusers.DDPMScheduler(variance_type="learned_range", beta_end=0.012)
    pixels = save_pixels(folder / "pixels", scheduler=learned, out_channels=6, num_class_embeds=6)
    return {
        "plain": _with_adapters(single, folder / "plain"),
        "xl": _with_adapters(spec(save_xl(folder / "xl")), folder / "adapters"),
        "inpainting": _of(spec(save_inpainting(folder / "inpainting"))),
        "pixels": _of(spec(pixels).model_copy(update={"null_class": 5})),
    }


def _of(own: ModelSpec) -> Swept:
    return Swept(own, Rounds(own))


def _with_adapters(own: ModelSpec, folder: Path) -> Swept:
    """A model with all adapters, and its pipeline before any is loaded, to add weights to."""
    folder.mkdir()
    pipe = Rounds(own).pipe
    files = {name: folder / f"{name}.safetensors" for name in _FILES}
    weights = {
        name: lora_files.save(files[name], lora_files.layers(pipe, seed, **which), form)
        for seed, (name, (form, which)) in enumerate(_FILES.items())
    }
    own = lora_files.with_adapters(own, files)
    made = Swept(own, Rounds(own), weights)
    if own.is_single_file:
        under_sd15_noise(pipe)
        under_sd15_noise(made.rounds.pipe)
    made._merged[()] = pipe
    return made
