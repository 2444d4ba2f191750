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

from worker.engine.device import device_memory
from worker.engine.loading import adapters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import nn

    from worker.config.models import ModelSpec
    from worker.engine.job import Adapters
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)


class RowAdapters:
    """The adapters of one model. Loaded when a task first names them; for the engine's thread."""

    def __init__(self) -> None:
        #: The layers that each has weights for, by network; the least recently used adapter first.
        self.loaded: dict[str, dict[nn.Module, list[Any]]] = {}

    def are_loaded(self, names: Collection[str]) -> bool:
        """Whether none of them would have to be loaded."""
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
            self.loaded[name] = adapters.layers(pipeline, name)

    def use(self, names: Collection[str]) -> None:
        """Note that a job uses these, which are loaded."""
        self.loaded |= {name: self.loaded.pop(name) for name in names}

    @contextmanager
    def added(self, network: nn.Module, rows: Sequence[Adapters]) -> Iterator[None]:
        """Apply adapters to the rows of one call of a network: names and scales of each row.

        Raises KeyError for one that is not loaded.
        """
        of_rows = _Rows(rows)
        hooks = [
            layer.register_forward_hook(partial(_add, name=name, rows=of_rows))
            for name in sorted({name for row in rows for name, _ in row})
            for layer in self.loaded[name].get(network, ())
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Rows:
    """Which rows of a call ask for an adapter, and at which scales."""

    def __init__(self, rows: Sequence[Adapters]) -> None:
        self._rows = [dict(row) for row in rows]
        self._indices: dict[tuple[str, int], torch.Tensor] = {}
        self._scales: dict[tuple[str, int, float], torch.Tensor] = {}

    def of(
        self, name: str, unit: float, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of the rows with adapter `name` among the first `count`, and scales times `unit`.

        The indices, int64, are copied to the device once for all layers, the scales, float32, once
        for each `unit`.
        """
        rows = self._rows[:count]
        if (index := self._indices.get((name, count))) is None:
            found = [n for n, row in enumerate(rows) if name in row]
            index = device_memory.to_device(torch.tensor(found, dtype=torch.long), device)
            self._indices[name, count] = index
        if (scale := self._scales.get((name, count, unit))) is None:
            scales = [row[name] * unit for row in rows if name in row]
            scale = device_memory.to_device(torch.tensor(scales, dtype=torch.float32), device)
            self._scales[name, count, unit] = scale
        return index, scale


def _add(
    layer: Any,  # noqa: ANN401  # a `LoraLayer` that is a module
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
    *,
    name: str,
    rows: _Rows,
) -> None:
    """Forward hook of a layer: adds to its output an adapter, in the rows that ask for it.

    An adapter sees its own rows alone: what it does, should it overflow, reaches no other.
    """
    key = adapters.in_peft(name)
    # SAG calls its layer's query and key with the first rows alone.
    index, scale = rows.of(name, layer.scaling[key], len(output), output.device)
    low = layer.lora_A[key](inputs[0].index_select(0, index))
    low.mul_(scale.view(-1, *(1,) * (low.dim() - 1)))  # in float32, rounded once
    output.index_add_(0, index, layer.lora_B[key](low))
