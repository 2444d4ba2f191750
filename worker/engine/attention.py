"""The UNet's mid block while it is listened to: column sums of its self-attention."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.models.attention_processor import AttnProcessor2_0

from worker.engine import guidance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class SagAttnProcessor(AttnProcessor2_0):
    """Attends as the usual processor does, and keeps the column sums of the first `rows` rows.

    The map itself, tokens by tokens for each head, lives only inside `column_sums`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.sums: torch.Tensor | None = None
        #: Height and width of the mid block.
        self.size = (0, 0)

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # diffusers' signature
        """Attention, (rows, tokens, width) to the same."""
        if self.rows:
            sag_rows = hidden_states[: self.rows]
            query, key = (
                each(sag_rows).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for each in (attn.to_q, attn.to_k)
            )
            self.sums = guidance.column_sums(query, key, attn.scale)
        return super().__call__(attn, hidden_states, *args, **kwargs)

    def measure(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401  # torch's signature
        """Note the mid block's true size: odd latents make it no simple fraction of theirs."""
        height, width = inputs[0].shape[-2:]
        self.size = height, width


@contextmanager
def capture_attention(unet: Any, tap: SagAttnProcessor, rows: int) -> Iterator[SagAttnProcessor]:  # noqa: ANN401  # a diffusers UNet
    """For one call of the UNet, let `tap` see the first `rows` rows; none puts nothing in place."""
    if not rows:
        yield tap
        return
    block = unet.mid_block.attentions[0]
    attn = block.transformer_blocks[0].attn1
    usual, tap.rows = attn.processor, rows
    hook = block.register_forward_pre_hook(tap.measure)
    attn.processor = tap
    try:
        yield tap
    finally:
        attn.processor = usual
        hook.remove()
        tap.sums = None
