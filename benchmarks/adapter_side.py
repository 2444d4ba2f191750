"""A UNet whose rows have different LoRA weights, in four ways. Runs in a side's process."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import lora, unet
from benchmarks import model as models
from worker.config.models import Adapter
from worker.engine.loading import adapters, model_loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.model import Model

#: Calls that are timed in a turn.
CALLS = 5


def save(model: Model, folder: Path, count: int) -> None:
    """Files of random LoRA weights for a model's UNet."""
    models.silence_libraries()
    lora.save({"unet": unet.load(model)}, folder, count)


class AdapterSide:
    """One UNet on its device with adapters loaded; each way gives the seconds of one call.

    On the CPU they are the processor's, of one thread, which other programs disturb less.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        models.silence_libraries()
        if model.device == "cpu":
            torch.set_num_threads(1)
        self._names = [each.stem for each in sorted(folder.glob("*.safetensors"))]
        files = {name: Adapter(path=str(folder / f"{name}.safetensors")) for name in self._names}
        spec = model.spec.model_copy(update={"adapters": files, "dtype": model.alone_dtype})
        self._model = model
        self._loaded = model_loader.load(spec, model.device, "none")
        self._unet = self._loaded.pipeline.unet
        self._adapters = self._loaded.adapters
        self._adapters.load(self._loaded.pipeline, spec, self._names, self._names, len(self._names))
        self._layers = self._adapters.loaded[self._names[0]][self._unet]  # of all of them

    def plain(self, rows: int, _count: int) -> float:
        """A call of rows without adapters."""
        return self._seconds([rows], lambda _: ExitStack())

    def by_row(self, rows: int, count: int) -> float:
        """A call whose rows have so many adapters in turn, as the engine makes it."""
        of_row = [((name, 1.0),) for name in self._in_turn(rows, count)]
        return self._seconds([rows], lambda _: self._adapters.added(self._unet, of_row))

    def by_names(self, rows: int, count: int) -> float:
        """The same with peft's `adapter_names`, which takes one adapter for each row."""
        of_row = [adapters.in_peft(name) for name in self._in_turn(rows, count)]
        return self._seconds([rows], lambda _: self._named(of_row))

    def in_turns(self, rows: int, count: int) -> float:
        """A call for each adapter, over its rows, with the adapter active in peft."""
        each = [rows // count + (number < rows % count) for number in range(count)]
        return self._seconds(each, lambda number: self._active(self._names[number]))

    def _in_turn(self, rows: int, count: int) -> list[str]:
        return [self._names[row % count] for row in range(rows)]

    def _seconds(self, calls: Sequence[int], entered: Any) -> float:  # noqa: ANN401  # context managers
        """Of calls of so many rows, one after the other, each within what `entered` gives."""
        given = [unet.inputs(self._model, self._unet, rows) for rows in calls]

        def call() -> None:
            for number, each in enumerate(given):
                with torch.inference_mode(), entered(number):
                    self._unet(*each, return_dict=False)

        on_cpu = self._model.device == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        return unet.seconds(call, self._model.device, CALLS, clock)

    @contextmanager
    def _named(self, of_row: list[str]) -> Iterator[None]:
        def named(_module: object, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401  # torch's signature
            return args, kwargs | {"adapter_names": of_row}

        with ExitStack() as stack:
            for layer in self._layers:
                hook = layer.register_forward_pre_hook(named, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    @contextmanager
    def _active(self, name: str) -> Iterator[None]:
        for layer in self._layers:
            layer.set_adapter([adapters.in_peft(name)])
        try:
            yield
        finally:
            for layer in self._layers:
                layer.set_adapter([])
