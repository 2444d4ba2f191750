"""LoRA weights by request: a model's `adapters`, in the rows of a call that ask for them.

diffusers and peft parse and store the files; in peft they are inactive. For one call, each layer
adds to its output, in those rows alone, scale x B(A(input)) of each adapter. Rows of a call may
have different adapters, several each, and different scales.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from worker.engine import device_memory
from worker.engine.loading import adapters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from worker.config.models import ModelSpec
    from worker.engine.job import Adapters
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)


class RowAdapters:
    """The adapters of one model. Loaded when a task first names them; for the engine's thread."""

    def __init__(self) -> None:
        #: Names, the least recently used first.
        self.loaded: dict[str, None] = {}
        #: The layers with adapters, by the network that they are in.
        self._layers: dict[nn.Module, list[Any]] = {}

    def are_loaded(self, names: Collection[str]) -> bool:
        """Whether none of them would have to be loaded. Any thread."""
        return self.loaded.keys() >= {*names}

    def load(
        self,
        pipeline: Pipeline,
        spec: ModelSpec,
        names: Collection[str],
        busy: Collection[str],
        capacity: int,
    ) -> None:
        """Load those that are not into the model's pipeline; raises `ModelLoadError`.

        At most `capacity` stay loaded: the least recently used ones that are not `busy` leave.
        """
        missing = [name for name in names if name not in self.loaded]
        idle = [name for name in self.loaded if name not in {*names, *busy}]
        while idle and len(self.loaded) + len(missing) > capacity:
            logger.info("unloaded adapter %s to load another", idle[0])
            del self.loaded[idle[0]]
            adapters.unload(pipeline, idle.pop(0))
        for name in missing:
            adapters.load(pipeline, spec, name)
            self.loaded[name] = None
            self._layers = adapters.layers(pipeline)

    def use(self, names: Collection[str]) -> None:
        """Note that a job uses these, which are loaded."""
        self.loaded |= {name: self.loaded.pop(name) for name in names}

    @contextmanager
    def added(self, network: nn.Module, rows: Sequence[Adapters]) -> Iterator[None]:
        """Apply adapters to the rows of one call of a network: names and scales of each row."""
        names = sorted({name for row in rows for name, _ in row})
        if not names:
            yield
            return
        scales = _Scales(rows)
        hooks = [
            layer.register_forward_hook(partial(_add, names=present, scales=scales))
            for layer in self._layers.get(network, ())
            if (present := [name for name in names if adapters.in_peft(name) in layer.lora_A])
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Scales:
    """The scale of each row for the ranks of a layer's adapters, copied to the device once."""

    def __init__(self, rows: Sequence[Adapters]) -> None:
        self._rows = [dict(row) for row in rows]
        self._made: dict[tuple[tuple[str, int, float], ...], torch.Tensor] = {}

    def of(self, parts: tuple[tuple[str, int, float], ...], device: torch.device) -> torch.Tensor:
        """(rows, sum of ranks), float32; `parts` are name, rank, alpha / rank of each adapter."""
        if parts not in self._made:
            scales = torch.tensor(
                [
                    [row.get(name, 0.0) * unit for name, rank, unit in parts for _ in range(rank)]
                    for row in self._rows
                ],
                dtype=torch.float32,
            )
            self._made[parts] = device_memory.to_device(scales, device)
        return self._made[parts]


def _add(
    layer: Any,  # noqa: ANN401  # a `LoraLayer` that is a module
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
    *,
    names: Sequence[str],
    scales: _Scales,
) -> torch.Tensor:
    """Forward hook of a layer: its output with the adapters that each row asks for.

    All adapters are one product, as one of the sum of their ranks, so that the number of kernels
    does not depend on theirs. What a row does not ask for is replaced by 0 rather than multiplied
    by it: an adapter that overflows must not reach other rows.
    """
    keys = [adapters.in_peft(name) for name in names]
    downs = [layer.lora_A[key] for key in keys]
    down = torch.cat([each.weight for each in downs])
    up = torch.cat([layer.lora_B[key].weight for key in keys], dim=1)
    parts = tuple(
        (name, layer.r[key], layer.scaling[key]) for name, key in zip(names, keys, strict=True)
    )
    # SAG calls its layer's query and key with the first rows alone.
    scale = scales.of(parts, output.device)[: len(output)]
    if isinstance(downs[0], nn.Conv2d):
        low = functional.conv2d(inputs[0], down, None, downs[0].stride, downs[0].padding)
        return output + functional.conv2d(_scaled(low, scale[:, :, None, None]), up)
    low = functional.linear(inputs[0], down)
    scale = scale.view(len(scale), *(1,) * (low.dim() - 2), -1)
    return output + functional.linear(_scaled(low, scale), up)


def _scaled(low: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (low * scale).masked_fill(scale == 0, 0).to(low.dtype)
