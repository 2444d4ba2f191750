"""Stable Diffusion 1 and 2: one text encoder, latents of an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.denoising.lora_scale import lora_scaled
from worker.engine.device import device_memory
from worker.engine.families.conditioning import TEXT
from worker.engine.families.latent import LatentFamily
from worker.engine.loading.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.config.models import ModelSpec
    from worker.engine.families.conditioning import Conditioning, EncoderInput
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline


class StableDiffusion(LatentFamily):
    """Text embeddings are the last layer's, or an earlier one's after the final layer norm."""

    name, title = "stable_diffusion", "Stable Diffusion"
    networks = ("text_encoder", "unet", "vae")
    encoders = (("tokenizer", "text_encoder"),)

    def pipeline(self, source: str, spec: ModelSpec, **options: Any) -> Pipeline:  # noqa: ANN401  # diffusers' own
        """A `StableDiffusionPipeline`, with its safety checker or without."""
        if not spec.safety_checker:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        return build(StableDiffusionPipeline, source, spec, **options)

    def faults(self, pipe: Pipeline) -> Iterator[str]:
        """A UNet with inputs of another family, too."""
        yield from super().faults(pipe)
        if pipe.unet.config.addition_embed_type is not None:
            yield "has inputs beside the text, which are not served"

    def encode_group(self, model: LoadedModel, texts: Sequence[EncoderInput]) -> list[Conditioning]:
        """Text embeddings (tokens, width) of each text."""
        model.need("text_encoder")
        pipe, device = model.pipeline, torch.device(model.device)
        encoder = pipe.text_encoder
        tokens = pipe.tokenizer(
            pipe.maybe_convert_prompt([text.text for text in texts], pipe.tokenizer),
            padding="max_length",
            max_length=texts[0].tokens or pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = device_memory.to_device(tokens.attention_mask, device) if masked else None
        rows = [text.adapters for text in texts]
        with lora_scaled(encoder, texts[0].lora_scale), model.adapters.added(encoder, rows):
            output = encoder(
                device_memory.to_device(tokens.input_ids, device),
                attention_mask=mask,
                output_hidden_states=any(text.clip_skip is not None for text in texts),
            )
            # transformers 5 has no `text_model` between the encoder and its norm.
            norm = getattr(encoder, "text_model", encoder).final_layer_norm
            return [
                {
                    TEXT: output[0][row]
                    if text.clip_skip is None
                    else norm(output.hidden_states[-(text.clip_skip + 1)][row])
                }
                for row, text in enumerate(texts)
            ]

    def blank(self, pipe: Pipeline) -> Conditioning:
        """A text of the tokenizer's length."""
        return {TEXT: torch.zeros(pipe.tokenizer.model_max_length, self.width(pipe))}
