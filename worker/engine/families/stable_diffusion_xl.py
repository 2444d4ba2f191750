"""Stable Diffusion XL: two text encoders, and conditioning on the image's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from worker.engine import safetensors_io
from worker.engine.denoising.lora_scale import lora_scaled
from worker.engine.device import device_memory
from worker.engine.families.conditioning import TEXT, EncoderInput, check_range
from worker.engine.families.latent import LatentFamily, cut_off
from worker.engine.jobs.job import refusal
from worker.engine.loading.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.config.models import ModelSpec
    from worker.engine.families.conditioning import Conditioning
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline

#: diffusers' names: the second encoder's embedding of the whole text, (width,), and six numbers.
POOLED, SIZES = "text_embeds", "time_ids"


class StableDiffusionXL(LatentFamily):
    """Text embeddings are the last layer but one of both encoders, concatenated."""

    name, title = "stable_diffusion_xl", "Stable Diffusion XL"
    networks = ("text_encoder", "text_encoder_2", "unet", "vae")
    encoders = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    takes_sizes = True
    lacks = LatentFamily.lacks | {"textual_inversion"}

    def pipeline(self, source: str, spec: ModelSpec, **options: Any) -> Pipeline:  # noqa: ANN401  # diffusers' own
        """A `StableDiffusionXLPipeline`, whose autoencoder is in float32 where it must be."""
        from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415  # most workers need none

        pipe = build(StableDiffusionXLPipeline, source, spec, add_watermarker=False, **options)
        if pipe.vae.config.force_upcast and pipe.vae.dtype == torch.float16:
            pipe.vae.to(torch.float32)
        return pipe

    def faults(self, pipe: Pipeline) -> Iterator[str]:
        """A refiner, and sizes that do not fit."""
        if pipe.text_encoder is None:
            yield "is a refiner, which is not served"
            return
        yield from super().faults(pipe)
        config = pipe.unet.config
        if config.addition_embed_type != "text_time":
            yield f"takes {config.addition_embed_type} beside the text, which is not served"
        elif self._pooled_width(pipe) != pipe.text_encoder_2.config.projection_dim:
            yield (
                f"has a text encoder of projection {pipe.text_encoder_2.config.projection_dim} for"
                f" a UNet of {self._pooled_width(pipe)}"
            )

    def texts(self, job: Job) -> tuple[EncoderInput, ...]:
        """The prompts of both encoders."""
        seconds = _as_many(job.prompts_2, len(job.prompts), "prompt_2") or job.prompts
        return tuple(
            EncoderInput(first, second, job.clip_skip, job.lora_scale, job.adapters)
            for first, second in zip(job.prompts, seconds, strict=True)
        )

    def negative_texts(
        self, pipe: Pipeline, job: Job, count: int, tokens: int | None
    ) -> tuple[EncoderInput | Conditioning, ...]:
        """Those of both encoders; without any, zeros where the model was trained with them."""
        if self.has_zeros(pipe, job):
            blank = self.blank(pipe)
            zeros = {
                TEXT: blank[TEXT].new_zeros(tokens or len(blank[TEXT]), self.width(pipe)),
                POOLED: blank[POOLED],
            }
            return (zeros,) * count
        firsts = _as_many(job.negative_prompts or ("",), count, "negative_prompt")
        seconds = _as_many(job.negative_prompts_2, count, "negative_prompt_2") or firsts
        return tuple(
            EncoderInput(first, second, None, job.lora_scale, job.adapters, tokens)
            for first, second in zip(firsts, seconds, strict=True)
        )

    def has_zeros(self, pipe: Pipeline, job: Job) -> bool:
        """Where the model was trained with them."""
        return not job.negative_prompts and bool(pipe.config.force_zeros_for_empty_prompt)

    def truncated(self, pipe: Pipeline, job: Job) -> tuple[str, ...]:
        """Those of both encoders."""
        used = (*job.prompts_2, *(job.negative_prompts_2 if job.guidance_scale > 1 else ()))
        cut = (cut_off(pipe, pipe.tokenizer_2, text) for text in used)
        return (*super().truncated(pipe, job), *filter(None, cut))

    def given(self, pipe: Pipeline, job: Job, prefix: str) -> tuple[Conditioning, ...] | None:
        """With the pooled embeddings of each prompt."""
        texts, where = super().given(pipe, job, prefix), f"{prefix}pooled_prompt_embeds"
        pooled = safetensors_io.read(getattr(job, where), where, ("n", self._pooled_width(pipe)))
        if texts is None:
            return None
        if pooled is None or len(pooled) != len(texts):
            what = "is missing" if pooled is None else f"has {len(pooled)} rows"
            raise refusal(where, what, f"{len(texts)} rows, as {prefix}prompt_embeds")
        check_range(where, pooled, pipe.unet.dtype)
        return tuple(text | {POOLED: each} for text, each in zip(texts, pooled, strict=True))

    def encode_group(self, model: LoadedModel, texts: Sequence[EncoderInput]) -> list[Conditioning]:
        """Text embeddings (tokens, width) and pooled ones (width,) of each text."""
        first, _ = self._encode(model, "", [each.text for each in texts], texts)
        words = [each.text if each.text_2 is None else each.text_2 for each in texts]
        second, pooled = self._encode(model, "_2", words, texts)
        return [
            {TEXT: torch.cat([first[row], second[row]], dim=-1), POOLED: pooled[row]}
            for row in range(len(texts))
        ]

    def _encode(
        self,
        model: LoadedModel,
        suffix: str,
        words: list[str],
        texts: Sequence[EncoderInput],
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One encoder's embeddings of each text, and its first output."""
        model.need(f"text_encoder{suffix}")
        pipe, device = model.pipeline, torch.device(model.device)
        encoder = getattr(pipe, f"text_encoder{suffix}")
        tokenizer = getattr(pipe, f"tokenizer{suffix}")
        tokens = tokenizer(
            pipe.maybe_convert_prompt(words, tokenizer),
            padding="max_length",
            max_length=texts[0].tokens or tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        rows = [text.adapters for text in texts]
        with lora_scaled(encoder, texts[0].lora_scale), model.adapters.added(encoder, rows):
            ids = device_memory.to_device(tokens.input_ids, device)
            output = encoder(ids, output_hidden_states=True)
        layers = [-(2 + (text.clip_skip or 0)) for text in texts]
        embeddings = [output.hidden_states[layer][row] for row, layer in enumerate(layers)]
        return embeddings, output[0]

    def of_size(self, pipe: Pipeline, job: Job, height_px: int, width_px: int) -> Conditioning:  # noqa: ARG002  # of families that need it
        """The image's original size, where it was cropped, and the size asked for, in pixels."""
        own = (height_px, width_px)
        crop = job.crops_coords_top_left or (0, 0)
        sizes = (*(job.original_size or own), *crop, *(job.target_size or own))
        return {SIZES: torch.tensor(sizes, dtype=torch.float32)}

    def blank(self, pipe: Pipeline) -> Conditioning:
        """A text of the tokenizer's length."""
        return {
            TEXT: torch.zeros(pipe.tokenizer.model_max_length, self.width(pipe)),
            POOLED: torch.zeros(self._pooled_width(pipe)),
            SIZES: torch.zeros(6),
        }

    def arguments(self, rows: Conditioning) -> dict[str, Any]:
        """The text embeddings; pooled ones and sizes as added conditions."""
        added = {POOLED: rows[POOLED], SIZES: rows[SIZES]}
        return {TEXT: rows[TEXT], "added_cond_kwargs": added}

    def to_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Some models have a mean and a deviation for each channel."""
        scaled = super().to_autoencoder(pipe, latents)
        if (moments := _moments(pipe, latents)) is None:
            return scaled
        mean, deviation = moments
        return scaled * deviation + mean

    def from_autoencoder(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_autoencoder`."""
        if (moments := _moments(pipe, latents)) is not None:
            mean, deviation = moments
            latents = (latents - mean) / deviation
        return super().from_autoencoder(pipe, latents)

    def _pooled_width(self, pipe: Pipeline) -> int:
        """Width of the pooled embeddings that the UNet takes."""
        config = pipe.unet.config
        width: int = (
            config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        )
        return width


def _as_many(texts: tuple[str, ...], count: int, where: str) -> tuple[str, ...]:
    """One text stands for all prompts; raises `BadRequestError` for another number."""
    if len(texts) not in (0, 1, count):
        raise refusal(where, f"has {len(texts)} entries for {count} prompts", "as many as prompts")
    return texts * count if len(texts) == 1 else texts


def _moments(pipe: Pipeline, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation of each channel, (1, c, 1, 1), where the autoencoder has them."""
    config = pipe.vae.config
    given = (getattr(config, "latents_mean", None), getattr(config, "latents_std", None))
    if None in given:
        return None
    mean, deviation = (
        device_memory.to_device(torch.tensor(each, dtype=like.dtype).view(1, -1, 1, 1), like.device)
        for each in given
    )
    return mean, deviation
