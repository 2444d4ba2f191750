"""The UNet as the engine calls it: any rows together, each with its own timestep and prompt."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import torch

from worker.engine import attention, guidance, warmup
from worker.engine.lora_scale import lora_scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.model_loader import LoadedModel

logger = logging.getLogger(__name__)

#: With `SAG_COMPILE`, calls are padded to one of these numbers of rows: each is compiled once.
COMPILED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class BatchedUnet:
    """One UNet on its device, and how many rows it takes at once."""

    def __init__(self, model: LoadedModel, max_batch_rows: int | None) -> None:
        """Warm up; measures the rows of one call unless `max_batch_rows` says them."""
        self._unet, self._compiled, self._on_cpu = (
            model.pipeline.unet, model.compiled, model.device == "cpu",
        )  # fmt: skip
        self._device = model.pipeline._execution_device  # noqa: SLF001  # diffusers' own way to ask
        self._format = torch.contiguous_format if self._on_cpu else torch.channels_last
        self._tap = attention.SagAttnProcessor()
        self._marks: deque[torch.cuda.Event] = deque()
        self.capacity = warmup.capacity(model.pipeline, self._call, max_batch_rows)

    def __call__(
        self,
        noisy: torch.Tensor,
        timesteps: Sequence[float],
        embeds: torch.Tensor,
        lora_scale: float | None,
        sag_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output, and for the first `sag_rows` rows the mask of what they attend to.

        `noisy` (rows, c, h, w) and `embeds` (rows, tokens, width) give an output like `noisy` and a
        mask (listened, 1, h, w). Where the rows do not fit, so many are not allowed again.
        """
        rows, _, height, width = noisy.shape
        try:
            output, sums = self._call(noisy, timesteps, embeds, lora_scale, sag_rows)
        except torch.OutOfMemoryError:
            self.capacity = self.capacity.less_than(rows, height, width)
            logger.warning("%d rows of %d x %d do not fit", rows, height, width)
            raise
        if sums is None:
            return output, None
        return output, guidance.mask(sums, self._tap.size, (height, width))

    def put(self, numbers: Sequence[Sequence[float]] | Sequence[float]) -> torch.Tensor:
        """Numbers of the host on the device, float32, without waiting for it."""
        tensor = torch.tensor(numbers, dtype=torch.float32)
        if self._on_cpu:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def pace(self) -> None:
        """Let the device be one tick behind and no more, or steps were told before they are done.

        It waits for an event and reads nothing; the device has the next tick to do meanwhile.
        """
        if self._on_cpu:
            return
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(self._device))
        self._marks.append(mark)
        if len(self._marks) > 1:
            self._marks.popleft().synchronize()

    def _call(
        self,
        noisy: torch.Tensor,
        timesteps: Sequence[float],
        embeds: torch.Tensor,
        lora_scale: float | None = None,
        sag_rows: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, told = len(timesteps), self.put(timesteps)
        if self._compiled:
            extra = next((n for n in COMPILED_ROWS if n >= rows), rows) - rows
            noisy, told, embeds = (
                torch.cat([each, each[-1:].expand(extra, *each.shape[1:])])
                for each in (noisy, told, embeds)
            )
        # A compiled call always listens to all rows, or each number of them would be compiled.
        heard = len(told) if self._compiled else sag_rows
        with (
            lora_scaled(self._unet, lora_scale),
            attention.capture_attention(self._unet, self._tap, heard) as tap,
        ):
            output: torch.Tensor = self._unet(
                noisy.to(self._unet.dtype, memory_format=self._format),
                told,
                encoder_hidden_states=embeds,
                return_dict=False,
            )[0]
            sums = None if tap.sums is None or not sag_rows else tap.sums[:sag_rows]
        return output[:rows], sums
