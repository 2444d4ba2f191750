"""A checkpoint of a whole model in one safetensors file: its kind, and what is wrong with it.

Reads the file's header only; knows no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker.config.models import CONVERT, PICKLES, SAFETENSORS
from worker.engine.loading import model_files, model_json
from worker.engine.loading.model_files import ModelFiles
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.config.models import ModelSpec

#: The names of the UNet's tensors begin so, and this is its first convolution.
UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
#: How the names of the other parts' tensors begin, by kind: OpenAI's CLIP, and OpenCLIP.
_VAE = "first_stage_model."
_TEXT_1, _TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
_TEXT_XL, _TEXT_XL_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoints that is served."""

    name: str
    #: Where the tensors of each part are.
    prefixes: dict[str, str]
    #: The repository with the configuration of such models, as diffusers has it; None where models
    #: of one layout have different ones.
    config: str | None

    @property
    def family(self) -> str:
        """The family of such models."""
        return "stable_diffusion_xl" if "text_encoder_2" in self.prefixes else "stable_diffusion"


_SD1 = {"unet": UNET, "vae": _VAE, "text_encoder": _TEXT_1}
_SD2 = {"unet": UNET, "vae": _VAE, "text_encoder": _TEXT_2}
_XL = {"unet": UNET, "vae": _VAE, "text_encoder": _TEXT_XL, "text_encoder_2": _TEXT_XL_2}
_SD15, _STABILITY = "stable-diffusion-v1-5/stable-diffusion", "stabilityai/stable-diffusion"
_XL_INPAINTING = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
#: By the prefix that only they have, and the channels of the UNet's input: 9 for inpainting.
KINDS = {
    (_TEXT_1, 4): Kind("1", _SD1, f"{_SD15}-v1-5"),
    (_TEXT_1, 9): Kind("1", _SD1, f"{_SD15}-inpainting"),
    (_TEXT_2, 4): Kind("2", _SD2, None),
    (_TEXT_2, 9): Kind("2", _SD2, f"{_STABILITY}-2-inpainting"),
    (_TEXT_XL_2, 4): Kind("XL", _XL, f"{_STABILITY}-xl-base-1.0"),
    (_TEXT_XL_2, 9): Kind("XL", _XL, _XL_INPAINTING),
}
#: What stands for other files: the beginning of a tensor's name, or its end.
_BEGIN = {
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL",
    "edm_": "a checkpoint with EDM's preconditioning, as Playground 2.5 and CosXL",
    "control_model.": "a ControlNet",
    "lora_": "a file of LoRA weights",
    "down_blocks.": "the UNet of a model alone",
    "encoder.": "the autoencoder of a model alone",
}
_END = {
    "joint_blocks.0.context_block.adaLN_modulation.1.bias": "a checkpoint of Stable Diffusion 3",
    "double_blocks.0.img_attn.norm.key_norm.scale": "a checkpoint of Flux",
    ".lora_A.weight": "a file of LoRA weights",
}
#: The tensors that trainers add to XL models that predict v, and to those of zero terminal SNR.
_PREDICTS_V, _ZERO_SNR = "v_pred", "ztsnr"
_TWO_CONFIGS = (
    "is of Stable Diffusion 2, whose models have one layout and predict v or epsilon: set its"
    " config to the configuration of the model that it was made from, such as"
    " stabilityai/stable-diffusion-2-1 (v, 768 px) or"
    " stabilityai/stable-diffusion-2-1-base (epsilon, 512 px)"
)


class SingleFile:
    """The header of a checkpoint that is served."""

    def __init__(self, path: str) -> None:
        """Raise `ModelLoadError`, the end of a sentence about the file, for any other file."""
        self._shapes = model_files.read_shapes(Path(path))
        self.kind = _kind_of(self._shapes)

    def config(self, spec: ModelSpec) -> str:
        """The folder or hub id with the configuration; raises `ModelLoadError` without one."""
        if spec.config or self.kind.config:
            return spec.config or str(self.kind.config)
        raise ModelLoadError(_TWO_CONFIGS, retryable=False)

    def inspect(self, config: Path | None, *, safety_checker: bool) -> ModelFiles:
        """The weights by part, and the faults of the file, and of its configuration if given."""
        found = self._weights()
        if safety_checker:
            found.faults.append("has no safety checker; set safety_checker to false for it")
        if config is not None:
            configured = model_files.inspect(config, safety_checker=False, weights=False)
            found.errors += configured.errors
            found.faults += self._faults_with(config, configured)
        return found

    def _faults_with(self, config: Path, configured: ModelFiles) -> Iterator[str]:
        if configured.faults:
            yield from (f"has a faulty config: {fault}" for fault in configured.faults)
            return
        index = model_json.read_index(config)
        if index.family != self.kind.family:
            yield f"is of Stable Diffusion {self.kind.name}, its config of {index.pipeline}"
        scheduler = model_json.read_json(config, "scheduler/scheduler_config.json")
        if _PREDICTS_V in self._shapes and scheduler.get("prediction_type") != "v_prediction":
            yield "predicts v, and its config does not: set config to one whose scheduler does"
        if _ZERO_SNR in self._shapes and not scheduler.get("rescale_betas_zero_snr"):
            yield (
                "was trained with zero terminal SNR (ztsnr): set config to one whose scheduler has"
                " rescale_betas_zero_snr"
            )

    def parameters(self, part: str) -> int:
        """Number of the part's parameters in the file."""
        return self._layers(part).total()

    def _weights(self) -> ModelFiles:
        found = ModelFiles()
        for part in self.kind.prefixes:
            layers = self._layers(part)
            found.parameters[part] = layers.total()
            found.largest_layers[part] = max(layers.values(), default=0)
            if not layers:
                found.faults.append(f"has no {part}: no tensor {self.kind.prefixes[part]}…")
        return found

    def _layers(self, part: str) -> Counter[str]:
        prefix, layers = self.kind.prefixes[part], Counter[str]()
        for name, shape in self._shapes.items():
            if name.startswith(prefix):
                layers[name.rpartition(".")[0]] += math.prod(shape)
        return layers


def why_unread(name: str) -> str:
    """Why a file of that name is not read as a model, as the end of a sentence about it."""
    if name.endswith(PICKLES):
        return f"is a pickle, which may run code and is not read; {CONVERT}"
    return f"is a single file, but no {SAFETENSORS} checkpoint"


def _kind_of(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    """The kind of a checkpoint; raises `ModelLoadError` with the name of one that is not served."""
    others = [what for mark, what in _BEGIN.items() if any(n.startswith(mark) for n in shapes)]
    others += [what for mark, what in _END.items() if any(n.endswith(mark) for n in shapes)]
    if others:
        raise ModelLoadError(f"is {others[0]}, which is not served as a model", retryable=False)
    if len(first := shapes.get(FIRST, ())) != 4:  # noqa: PLR2004  # of a convolution
        message = f"is no checkpoint of Stable Diffusion: it has no tensor {FIRST} of 4 dimensions"
        raise ModelLoadError(message, retryable=False)
    channels = first[1]
    texts = [text for text, _ in KINDS if any(name.startswith(text) for name in shapes)]
    if not texts:
        raise ModelLoadError("has no text encoder of Stable Diffusion", retryable=False)
    if (kind := KINDS.get((texts[0], channels))) is None:
        message = f"has a UNet with an input of {channels} channels, which is not served"
        raise ModelLoadError(message, retryable=False)
    return kind
