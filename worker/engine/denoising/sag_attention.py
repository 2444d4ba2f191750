"""The self-attention that SAG reads: which layer, and how much attention a position receives."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import AttnProcessor2_0

from worker.engine.denoising import guidance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from worker.engine.pipeline import Unet

#: The first layer of the UNet's mid block, unless the settings name another.
MID_BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
#: The same of a UNet without text.
MID_BLOCK_OF_PIXELS = "mid_block.attentions.0"
#: Dimensions of a layer's input that is no picture: (rows, positions, width).
_TOKENS = 3
#: Layers that an error names.
_NAMED = 4


class Attention(NamedTuple):
    """How much attention the positions of some rows receive."""

    #: Column sums, (rows, positions), with mean 1.
    sums: torch.Tensor
    #: Height and width of the layer.
    size: tuple[int, int]


def fault(unet: Unet, layer: str) -> str | None:
    """Why SAG can't read a layer, as the end of a sentence about the model."""
    layers = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, DiffusersAttention) and not module.is_cross_attention
    ]
    if layer in layers:
        return None
    found = ", ".join(layers[-_NAMED:]) or "none"
    if layer in (MID_BLOCK, MID_BLOCK_OF_PIXELS):
        return f"has no attention in its mid block, which SAG needs unless sag_layer names: {found}"
    return f"has no self-attention {layer!r} (sag_layer); it has, among others: {found}"


class SagAttnProcessor(AttnProcessor2_0):
    """Attention processor that records how much attention each position receives (equation 8).

    It attends as `AttnProcessor2_0` does and keeps the column sums of the first `rows` rows. The
    attention map, (heads, positions, positions) for each row, exists only inside `column_sums`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.sums: torch.Tensor | None = None
        #: Height and width of the layer.
        self.size = (0, 0)

    def __call__(
        self,
        attn: Any,  # noqa: ANN401  # diffusers' signature
        hidden_states: torch.Tensor,
        *args: Any,  # noqa: ANN401  # as above
        temb: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401  # as above
    ) -> Any:  # noqa: ANN401  # as above
        """Attention, (rows, positions, width) or, of pixels, (rows, width, h, w), to the same."""
        if self.rows:
            sag_rows = _tokens(attn, hidden_states[: self.rows])
            query, key = (
                each(sag_rows).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for each in (attn.to_q, attn.to_k)
            )
            self.sums = guidance.column_sums(query, key, attn.scale)
        if temb is not None:  # diffusers passes on what the processor has a parameter for
            kwargs["temb"] = temb
        return super().__call__(attn, hidden_states, *args, **kwargs)

    def record_size(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401  # torch's signature
        """Forward pre-hook of the block, or of a layer of pixels, which is its own block.

        Its size can't be derived from that of odd latents.
        """
        height, width = inputs[0].shape[-2:]
        self.size = height, width


def _tokens(attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # diffusers' own
    """What the layer makes queries and keys of, (rows, positions, width)."""
    if hidden_states.dim() == _TOKENS:
        return hidden_states
    hidden_states = hidden_states.flatten(2)
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states)
    return hidden_states.transpose(1, 2)


@contextmanager
def capture_attention(
    unet: Unet, processor: SagAttnProcessor, rows: int, layer: str = MID_BLOCK
) -> Iterator[None]:
    """Install `processor` in a layer for one call and its first `rows` rows; 0 installs none.

    `processor.sums` is None again afterwards.
    """
    if not rows:
        yield
        return
    attn = unet.get_submodule(layer)
    block = unet.get_submodule(layer.partition(".transformer_blocks.")[0])
    usual, processor.rows = attn.processor, rows
    hook = block.register_forward_pre_hook(processor.record_size)
    attn.processor = processor
    try:
        yield
    finally:
        attn.processor = usual
        hook.remove()
        processor.sums = None
