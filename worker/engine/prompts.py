"""Prompts and their opposites as embeddings, checked before the text encoder sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from api_contracts.errors import Fault
from worker.engine import tensors
from worker.errors import BadRequest

if TYPE_CHECKING:
    import torch

    from worker.engine.job import Job


@dataclass(frozen=True)
class Encoded:
    """Embeddings, each (prompts, tokens, width); `negative` is None without guidance."""

    embeds: torch.Tensor
    negative: torch.Tensor | None
    #: What of the prompts was beyond the encoder's length and has no effect.
    truncated: tuple[str, ...]


def encode(pipe: Any, job: Job) -> Encoded:  # noqa: ANN401  # a diffusers pipeline
    """Embeddings of the job's prompts, or those that it brings; raises `BadRequest`."""
    shape = ("n", "tokens", pipe.text_encoder.config.hidden_size)
    embeds = tensors.read(job.prompt_embeds, "prompt_embeds", shape)
    negative = tensors.read(job.negative_prompt_embeds, "negative_prompt_embeds", shape)
    count = len(job.prompts) or (0 if embeds is None else embeds.shape[0])
    if len(job.negative_prompts) not in (0, 1, count):
        what = f"has {len(job.negative_prompts)} entries for {count} prompts"
        _refuse("negative_prompt", what, "as many as prompts")
    _check_lengths(pipe, job, embeds, negative, count)
    negatives = list(job.negative_prompts or ("",))
    encoded, opposite = pipe.encode_prompt(
        list(job.prompts) or None,
        pipe._execution_device,  # noqa: SLF001  # diffusers' own way to ask
        1,
        job.guidance_scale > 1,
        negatives * count if len(negatives) == 1 else negatives,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
    )
    texts = (*job.prompts, *(job.negative_prompts if opposite is not None else ()))
    return Encoded(encoded, opposite, tuple(filter(None, (_beyond(pipe, text) for text in texts))))


def _check_lengths(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    job: Job,
    embeds: torch.Tensor | None,
    negative: torch.Tensor | None,
    count: int,
) -> None:
    """Embeddings and their opposites go through the UNet together, so they must be alike."""
    longest: int = pipe.text_encoder.config.max_position_embeddings
    if negative is None:
        if embeds is not None and job.guidance_scale > 1 and embeds.shape[1] > longest:
            what = f"has {embeds.shape[1]} tokens and no negative_prompt_embeds beside it"
            _refuse("prompt_embeds", what, f"<= {longest}")
        return
    tokens = pipe.tokenizer.model_max_length if embeds is None else embeds.shape[1]
    if negative.shape[:2] != (count, tokens):
        what = f"has {negative.shape[0]} rows of {negative.shape[1]} tokens"
        _refuse("negative_prompt_embeds", what, f"as many as the prompts: {count} of {tokens}")


def _beyond(pipe: Any, text: str) -> str:  # noqa: ANN401  # a diffusers pipeline
    """The end of a text that the tokenizer cuts off."""
    ids = pipe.tokenizer(text, truncation=False).input_ids
    cut: str = pipe.tokenizer.decode(ids[pipe.tokenizer.model_max_length - 1 : -1])
    return cut.strip()


def _refuse(where: str, what: str, limit: str) -> NoReturn:
    raise BadRequest(Fault(where=where, what=what, limit=limit))
