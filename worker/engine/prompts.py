"""Prompts and their opposites as embeddings, for many jobs in one call of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from api_contracts.errors import FieldError
from worker.engine import safetensors_io
from worker.engine.lora_scale import lora_scaled
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from worker.engine.job import Job


@dataclass(frozen=True)
class EncoderInput:
    """One text for the encoder, and how it is to be read."""

    text: str
    #: Last layers that are left out, as diffusers counts them.
    clip_skip: int | None = None
    #: Of the LoRA weights in the text encoder; None is as loaded.
    lora_scale: float | None = None
    #: Tokens that it is padded to; None is the tokenizer's own length.
    tokens: int | None = None


@dataclass(frozen=True)
class PromptInputs:
    """What a job says, checked: texts still to be encoded, or the embeddings that it brought."""

    texts: tuple[EncoderInput, ...]
    #: None where guidance is off.
    negative_texts: tuple[EncoderInput, ...] | None
    #: (prompts, tokens, width)
    embeds: torch.Tensor | None
    negative_embeds: torch.Tensor | None

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.texts) if self.embeds is None else self.embeds.shape[0]


def check(pipe: Any, job: Job) -> PromptInputs:  # noqa: ANN401  # a diffusers pipeline
    """The job's wording; raises `BadRequestError` for what the encoder would choke on."""
    shape = ("n", "tokens", pipe.text_encoder.config.hidden_size)
    embeds = safetensors_io.read(job.prompt_embeds, "prompt_embeds", shape)
    negative = safetensors_io.read(job.negative_prompt_embeds, "negative_prompt_embeds", shape)
    count = len(job.prompts) or (0 if embeds is None else embeds.shape[0])
    if len(job.negative_prompts) not in (0, 1, count):
        what = f"has {len(job.negative_prompts)} entries for {count} prompts"
        _refuse("negative_prompt", what, "as many as prompts")
    _check_lengths(pipe, job, embeds, negative, count)
    layers: int = pipe.text_encoder.config.num_hidden_layers
    if job.clip_skip is not None and job.clip_skip >= layers:
        _refuse("clip_skip", f"is {job.clip_skip} of {layers} layers", f"< {layers}")
    if job.clip_skip is not None and embeds is not None:
        _refuse("clip_skip", "has no effect on prompt_embeds", "null")
    texts = tuple(EncoderInput(text, job.clip_skip, job.lora_scale) for text in job.prompts)
    if job.guidance_scale <= 1:
        return PromptInputs(texts, None, embeds, None)
    negatives = job.negative_prompts or ("",)
    negatives = negatives * count if len(negatives) == 1 else negatives
    # diffusers reads the negative prompt to the last layer, whatever `clip_skip` says.
    tokens = None if embeds is None else embeds.shape[1]
    opposite = tuple(EncoderInput(text, None, job.lora_scale, tokens) for text in negatives)
    return PromptInputs(texts, opposite, embeds, negative)


def encode(pipe: Any, texts: Sequence[EncoderInput]) -> dict[EncoderInput, torch.Tensor]:  # noqa: ANN401  # a diffusers pipeline
    """Embeddings (tokens, width) of each text; one call for all of a LoRA scale and a length."""
    found: dict[EncoderInput, torch.Tensor] = {}
    groups: dict[tuple[float | None, int | None], list[EncoderInput]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault((text.lora_scale, text.tokens), []).append(text)
    for (scale, _), alike in groups.items():
        with lora_scaled(pipe.text_encoder, scale):
            found |= zip(alike, _encode_alike(pipe, alike), strict=True)
    return found


def truncated(pipe: Any, job: Job) -> tuple[str, ...]:  # noqa: ANN401  # a diffusers pipeline
    """What of the prompts is beyond the encoder's length and has no effect."""
    used = (*job.prompts, *(job.negative_prompts if job.guidance_scale > 1 else ()))
    return tuple(filter(None, (_beyond(pipe, text) for text in used)))


def _encode_alike(pipe: Any, texts: Sequence[EncoderInput]) -> list[torch.Tensor]:  # noqa: ANN401  # a diffusers pipeline
    encoder, device = pipe.text_encoder, pipe._execution_device  # noqa: SLF001  # diffusers' own way to ask
    tokens = pipe.tokenizer(
        pipe.maybe_convert_prompt([text.text for text in texts], pipe.tokenizer),
        padding="max_length",
        max_length=texts[0].tokens or pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    masked = getattr(encoder.config, "use_attention_mask", False)
    output = encoder(
        tokens.input_ids.to(device),
        attention_mask=tokens.attention_mask.to(device) if masked else None,
        output_hidden_states=any(text.clip_skip is not None for text in texts),
    )
    # Where it lies depends on transformers' version: 5 has no `text_model` around it.
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    return [
        output[0][row]
        if text.clip_skip is None
        else norm(output.hidden_states[-(text.clip_skip + 1)][row])
        for row, text in enumerate(texts)
    ]


def _check_lengths(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    job: Job,
    embeds: torch.Tensor | None,
    negative: torch.Tensor | None,
    count: int,
) -> None:
    """Embeddings and their opposites go through the UNet together, so they must be alike."""
    longest: int = pipe.tokenizer.model_max_length
    if negative is None:
        if embeds is not None and job.guidance_scale > 1 and embeds.shape[1] > longest:
            what = f"has {embeds.shape[1]} tokens and no negative_prompt_embeds beside it"
            _refuse("prompt_embeds", what, f"<= {longest}")
        return
    tokens = longest if embeds is None else embeds.shape[1]
    if negative.shape[:2] != (count, tokens):
        what = f"has {negative.shape[0]} rows of {negative.shape[1]} tokens"
        _refuse("negative_prompt_embeds", what, f"as many as the prompts: {count} of {tokens}")


def _beyond(pipe: Any, text: str) -> str:  # noqa: ANN401  # a diffusers pipeline
    """The end of a text that the tokenizer cuts off."""
    text = pipe.maybe_convert_prompt(text, pipe.tokenizer)
    ids = pipe.tokenizer(text, truncation=False).input_ids
    cut: str = pipe.tokenizer.decode(ids[pipe.tokenizer.model_max_length - 1 : -1])
    return cut.strip()


def _refuse(where: str, what: str, limit: str) -> NoReturn:
    raise BadRequestError(FieldError(where=where, what=what, limit=limit))
