"""Rows of a UNet call whose self-attention is changed in some layers, by PAG or by SEG.

PAG: Ahn et al., arXiv 2403.17377. SEG: Hong, arXiv 2408.00760. Every other row of the call keeps
its attention. It is done by hooks on a layer's projections, so that the layer keeps its processor,
be it SAG's, and its LoRA weights, and so that layers of pixels are no case of their own.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers.models.attention_processor import Attention

from worker.engine.denoising import guidance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

#: diffusers' own default, `pag_applied_layers="mid"`: all self-attention of the mid block.
BLOCK = "mid_block"


@dataclass(frozen=True)
class PerturbedRows:
    """Which rows of one call are changed. With SAG in the call they come after its rows."""

    #: Each position attends to itself alone (PAG).
    identity: range = range(0)
    #: The queries are blurred (SEG).
    blurred: range = range(0)
    #: Of that blur, in cells of the layer; infinite is the mean of all queries.
    sigma: float = math.inf


def layers(unet: Any, block: str = BLOCK) -> list[str]:  # noqa: ANN401  # diffusers has no types
    """The self-attention layers of a block."""
    return [
        name
        for name, module in unet.named_modules()
        if name.startswith(f"{block}.")
        and isinstance(module, Attention)
        and not module.is_cross_attention
    ]


@contextmanager
def perturb(unet: Any, names: Sequence[str], rows: PerturbedRows) -> Iterator[None]:  # noqa: ANN401  # as above
    """Change the attention of `rows` in the layers `names` for one call."""
    with ExitStack() as stack:
        for name in names:
            attn = unet.get_submodule(name)
            if rows.identity:
                identity = _Identity(rows.identity)
                stack.callback(attn.to_v.register_forward_hook(identity.keep).remove)
                stack.callback(attn.to_out[0].register_forward_pre_hook(identity.put).remove)
            if rows.blurred:
                blurred = _Blurred(rows.blurred, rows.sigma)
                block = unet.get_submodule(name.partition(".transformer_blocks.")[0])
                stack.callback(block.register_forward_pre_hook(blurred.record_size).remove)
                stack.callback(attn.to_q.register_forward_hook(blurred.blur).remove)
        yield


class _Identity:
    """Attention whose map is the identity: what leaves the layer are its values."""

    def __init__(self, rows: range) -> None:
        self._rows = slice(rows.start, rows.stop)
        self._values: torch.Tensor

    def keep(self, _module: Any, _inputs: Any, values: torch.Tensor) -> None:  # noqa: ANN401  # torch's signature
        """Forward hook of `to_v`."""
        self._values = values[self._rows]

    def put(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401  # torch's signature
        """Forward pre-hook of the output projection, whose input nothing else reads."""
        inputs[0][self._rows] = self._values


class _Blurred:
    """Attention of blurred queries, which is that of a map blurred before its softmax."""

    def __init__(self, rows: range, sigma: float) -> None:
        self._rows, self._sigma = slice(rows.start, rows.stop), sigma
        self._size = (0, 0)

    def record_size(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401  # torch's signature
        """Forward pre-hook of the block: positions don't tell height from width."""
        height, width = inputs[0].shape[-2:]
        self._size = height, width

    def blur(self, _module: Any, _inputs: Any, queries: torch.Tensor) -> None:  # noqa: ANN401  # torch's signature
        """Forward hook of `to_q`. SAG calls it with its own rows, which leaves none to change."""
        queries[self._rows] = blurred(queries[self._rows], self._size, self._sigma)


def blurred(queries: torch.Tensor, size: tuple[int, int], sigma: float) -> torch.Tensor:
    """Queries (rows, positions, width) blurred over the layer's height and width.

    The kernel is that of SEG's authors: 3 sigma, at most half of the smaller side.
    """
    if math.isinf(sigma):
        return queries.mean(1, keepdim=True).expand_as(queries)
    picture = queries.transpose(1, 2).unflatten(2, size)
    radius = min(math.ceil(6 * sigma) // 2, min(size) // 2)
    return guidance.blur(picture, sigma, radius).flatten(2).transpose(1, 2)
