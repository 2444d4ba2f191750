"""What the UNet gets beside latents and timestep: texts to encode, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from worker.engine.jobs.job import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.engine.jobs.job import Adapters

#: The name of the text embeddings, (tokens, width) for a row; pixel-space models have none.
TEXT = "encoder_hidden_states"
#: The tensors of one row by name; stacked, those of all rows of a call.
Conditioning: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EncoderInput:
    """One text for the encoders, and how to encode it."""

    text: str
    #: For a second encoder; None where there is one only.
    text_2: str | None = None
    #: Last layers that are left out, as diffusers counts them.
    clip_skip: int | None = None
    #: Factor on the LoRA weights in the text encoders; None is 1.
    lora_scale: float | None = None
    #: The job's adapters; they act in the text encoders for which their files have weights.
    adapters: Adapters = ()
    #: Length that it is padded to, in tokens; None is the tokenizer's own.
    tokens: int | None = None


@dataclass(frozen=True)
class PromptInputs:
    """A job's prompts, validated: each a text to encode, or what the job contains instead."""

    positive: tuple[EncoderInput | Conditioning, ...]
    #: One for each prompt; None without classifier-free guidance.
    negative: tuple[EncoderInput | Conditioning, ...] | None

    @property
    def to_encode(self) -> list[EncoderInput]:
        """All texts that need the encoders."""
        both = (*self.positive, *(self.negative or ()))
        return [each for each in both if isinstance(each, EncoderInput)]


def encoded(
    each: EncoderInput | Conditioning, known: Mapping[EncoderInput, Conditioning]
) -> Conditioning:
    """The conditioning of a prompt: as the job contains it, or that of its text in `known`."""
    return known[each] if isinstance(each, EncoderInput) else each


def stack(rows: list[Conditioning]) -> Conditioning:
    """The conditioning of all rows of a call, by name (rows, …)."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a row in the UNet's precision; labels of classes stay whole numbers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def check_range(where: str, values: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a tensor that is not finite in the precision of the network that gets it."""
    if not bool(values.to(dtype).isfinite().all()):
        raise refusal(where, f"holds values that {dtype} does not reach", str(dtype))
