"""Prompts and negative prompts as embeddings, for many jobs in one call of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from worker.engine import device_memory, safetensors_io
from worker.engine.job import refusal
from worker.engine.lora_scale import lora_scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.job import Job
    from worker.engine.model_loader import LoadedModel
    from worker.engine.pipeline import Pipeline


@dataclass(frozen=True)
class EncoderInput:
    """One text for the encoder, and how to encode it."""

    text: str
    #: Last layers that are left out, as diffusers counts them.
    clip_skip: int | None = None
    #: Factor on the LoRA weights in the text encoder; None is 1.
    lora_scale: float | None = None
    #: Length that it is padded to, in tokens; None is the tokenizer's own.
    tokens: int | None = None


@dataclass(frozen=True)
class PromptInputs:
    """A job's prompts, validated: texts to encode, or the embeddings that the job contains."""

    texts: tuple[EncoderInput, ...]
    #: None without classifier-free guidance.
    negative_texts: tuple[EncoderInput, ...] | None
    #: (prompts, tokens, width)
    embeds: torch.Tensor | None
    negative_embeds: torch.Tensor | None

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.texts) if self.embeds is None else self.embeds.shape[0]

    @property
    def to_encode(self) -> tuple[EncoderInput, ...]:
        """All texts that need the encoder."""
        negative = self.negative_texts if self.negative_embeds is None else None
        return self.texts + (negative or ())


def check(pipe: Pipeline, job: Job) -> PromptInputs:
    """Validate the job's prompts against the model; raises `BadRequestError`."""
    shape = ("n", "tokens", pipe.text_encoder.config.hidden_size)
    embeds = safetensors_io.read(job.prompt_embeds, "prompt_embeds", shape)
    negative = safetensors_io.read(job.negative_prompt_embeds, "negative_prompt_embeds", shape)
    for where, values in (("prompt_embeds", embeds), ("negative_prompt_embeds", negative)):
        if values is not None:
            check_range(where, values, pipe.unet.dtype)
    count = len(job.prompts) or (0 if embeds is None else embeds.shape[0])
    if len(job.negative_prompts) not in (0, 1, count):
        what = f"has {len(job.negative_prompts)} entries for {count} prompts"
        raise refusal("negative_prompt", what, "as many as prompts")
    _check_lengths(pipe, job, embeds, negative, count)
    layers: int = pipe.text_encoder.config.num_hidden_layers
    if job.clip_skip is not None and job.clip_skip >= layers:
        raise refusal("clip_skip", f"is {job.clip_skip} of {layers} layers", f"< {layers}")
    if job.clip_skip is not None and embeds is not None:
        raise refusal("clip_skip", "has no effect on prompt_embeds", "null")
    texts = tuple(EncoderInput(text, job.clip_skip, job.lora_scale) for text in job.prompts)
    if job.guidance_scale <= 1:
        return PromptInputs(texts, None, embeds, None)
    negatives = job.negative_prompts or ("",)
    negatives = negatives * count if len(negatives) == 1 else negatives
    # diffusers ignores `clip_skip` for the negative prompt.
    tokens = None if embeds is None else embeds.shape[1]
    negative_texts = tuple(EncoderInput(text, None, job.lora_scale, tokens) for text in negatives)
    return PromptInputs(texts, negative_texts, embeds, negative)


def check_range(where: str, values: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a tensor that is not finite in the precision of the network that gets it."""
    if not bool(values.to(dtype).isfinite().all()):
        raise refusal(where, f"holds values that {dtype} does not reach", str(dtype))


def encode(model: LoadedModel, texts: Sequence[EncoderInput]) -> dict[EncoderInput, torch.Tensor]:
    """Embeddings (tokens, width) of each text; one encoder call per LoRA scale and length."""
    found: dict[EncoderInput, torch.Tensor] = {}
    groups: dict[tuple[float | None, int | None], list[EncoderInput]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault((text.lora_scale, text.tokens), []).append(text)
    for (scale, _), group in groups.items():
        with lora_scaled(model.pipeline.text_encoder, scale):
            found |= zip(group, _encode_group(model, group), strict=True)
    return found


def truncated(pipe: Pipeline, job: Job) -> tuple[str, ...]:
    """The ends of the prompts that exceed the encoder's length and have no effect."""
    used = (*job.prompts, *(job.negative_prompts if job.guidance_scale > 1 else ()))
    return tuple(filter(None, (_cut_off(pipe, text) for text in used)))


def _encode_group(model: LoadedModel, texts: Sequence[EncoderInput]) -> list[torch.Tensor]:
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
    output = encoder(
        device_memory.to_device(tokens.input_ids, device),
        attention_mask=device_memory.to_device(tokens.attention_mask, device) if masked else None,
        output_hidden_states=any(text.clip_skip is not None for text in texts),
    )
    # transformers 5 has no `text_model` between the encoder and its norm.
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    return [
        output[0][row]
        if text.clip_skip is None
        else norm(output.hidden_states[-(text.clip_skip + 1)][row])
        for row, text in enumerate(texts)
    ]


def _check_lengths(
    pipe: Pipeline,
    job: Job,
    embeds: torch.Tensor | None,
    negative: torch.Tensor | None,
    count: int,
) -> None:
    """Positive and negative embeddings share a UNet call, so they must have the same length."""
    longest: int = pipe.tokenizer.model_max_length
    if negative is None:
        if embeds is not None and job.guidance_scale > 1 and embeds.shape[1] > longest:
            what = f"has {embeds.shape[1]} tokens and no negative_prompt_embeds beside it"
            raise refusal("prompt_embeds", what, f"<= {longest}")
        return
    tokens = longest if embeds is None else embeds.shape[1]
    if negative.shape[:2] != (count, tokens):
        what = f"has {negative.shape[0]} rows of {negative.shape[1]} tokens"
        limit = f"as many as the prompts: {count} of {tokens}"
        raise refusal("negative_prompt_embeds", what, limit)


def _cut_off(pipe: Pipeline, text: str) -> str:
    """The end of a text that the tokenizer truncates."""
    text = pipe.maybe_convert_prompt(text, pipe.tokenizer)
    ids = pipe.tokenizer(text, truncation=False).input_ids
    cut: str = pipe.tokenizer.decode(ids[pipe.tokenizer.model_max_length - 1 : -1])
    # A token may be a part of a character; what is left of it is no text.
    return cut.lstrip("\N{REPLACEMENT CHARACTER}").strip()
