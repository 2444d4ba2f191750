"""The folder that ships: the trained parts in diffusers' layout, in half precision.

Owns the weights and configurations of `worker.config.models.SHIPPED_MODEL`; knows nothing of how
good they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusers import AutoencoderKL, StableDiffusionPipeline

from training import tokenizer as bpe
from training import vae as autoencoder
from training.dataset import captions
from training.denoiser import Denoiser, noise_schedule
from training.progress import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPTokenizer

#: Readable by the user that a container runs as; safetensors writes files for their owner only.
MODE = 0o644


@dataclass(frozen=True)
class Parts:
    """The three things that training makes."""

    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    denoiser: Denoiser


def from_work(work: Path) -> Parts:
    """The parts as the checkpoints in `work` have them, the denoiser's weights averaged.

    Works with the checkpoint of any step, so that a run can be looked at before its end.
    """
    tokenizer = bpe.train(captions(work))
    trained = AutoencoderKL.from_pretrained(work / "vae")
    # Built anew: a loaded one keeps the path that it came from in its configuration.
    vae = autoencoder.build()
    vae.load_state_dict(trained.state_dict())
    vae.register_to_config(scaling_factor=trained.config.scaling_factor)
    denoiser = Denoiser(tokenizer)
    denoiser.load_state_dict(Stage("denoiser", work).averaged())
    return Parts(tokenizer, vae.eval(), denoiser.eval())


def write(parts: Parts, out: Path) -> None:
    """Write the pipeline to `out` as safetensors; the UNet and VAE given become fp16.

    The text encoder stays in fp32: transformers 5 loads a model in the precision that it was
    saved in, diffusers in fp32, and a pipeline loaded without a `torch_dtype` must be of one.
    """
    pipeline = StableDiffusionPipeline(
        vae=parts.vae.half(),
        text_encoder=parts.denoiser.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.denoiser.unet.half(),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in weight_files(out):
        file.chmod(MODE)


def weight_files(out: Path) -> list[Path]:
    """The exported weights, in the order of their paths."""
    return sorted(out.glob("*/*.safetensors"))


def fingerprint(out: Path) -> str:
    """SHA-256 over the exported weights, which ties the measurements to them."""
    digest = hashlib.sha256()
    for file in weight_files(out):
        digest.update(file.read_bytes())
    return digest.hexdigest()
