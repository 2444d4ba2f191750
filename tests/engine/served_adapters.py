"""A model that serves LoRA files by request, and diffusers alone beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.engine import lora_files, oracle
from tests.engine.diffusers_alone import bare
from tests.engine.jobs import Rounds

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from worker.config.models import ModelSpec
    from worker.engine.job import Job

#: LoRA files in all forms: of attention alone, of convolutions, of text encoders.
FILES: dict[str, tuple[lora_files.Format, dict[str, str]]] = {
    "ink": ("peft", {}),
    "oil": ("kohya", {"unet": lora_files.CONVOLUTIONS}),
    "wax": ("kohya", {"texts": lora_files.TEXTS}),
    "tar": ("diffusers", {"texts": lora_files.TEXTS, "unet": r"to_(q|v)$"}),
}


class Served:
    """A model with LoRA files by request, and diffusers alone beside it."""

    def __init__(self, own: ModelSpec, folder: Path) -> None:
        self.own, pipe = own, bare(own.path)
        self.files = {name: folder / f"{name}.safetensors" for name in FILES}
        self.weights = {
            name: lora_files.save(self.files[name], lora_files.layers(pipe, seed, **which), form)
            for seed, (name, (form, which)) in enumerate(FILES.items())
        }
        self.rounds = Rounds(lora_files.with_adapters(own, self.files))

    def merged(self, wanted: Job) -> torch.Tensor:
        """By diffusers, or with SAG by the plain loop, with the weights added to the model's."""
        pipe = bare(self.own.path)
        for name, scale in wanted.adapters:
            lora_files.merge(pipe, self.weights[name], scale)
        return by_oracle(pipe, wanted)

    def by_set_adapters(self, wanted: Job) -> torch.Tensor:
        """The same with diffusers' own `load_lora_weights` and `set_adapters`."""
        pipe = bare(self.own.path)
        for name, _ in wanted.adapters:
            pipe.load_lora_weights(str(self.files[name]), adapter_name=name)
        names, scales = zip(*wanted.adapters, strict=True)
        pipe.set_adapters(list(names), list(scales))
        return by_oracle(pipe, wanted)


def by_oracle(pipe: Any, wanted: Job) -> torch.Tensor:
    """The latents of a job by a pipeline as it is."""
    return (oracle.alone if wanted.sag_scale else oracle.plain)(pipe, wanted)
