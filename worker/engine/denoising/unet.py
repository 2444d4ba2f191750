"""The UNet call: rows of many images, each with timestep and conditioning; attention of some."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from worker.engine.denoising.lora_scale import lora_scaled
from worker.engine.denoising.sag_attention import Attention, SagAttnProcessor, capture_attention
from worker.engine.device import device_errors, device_memory, warmup
from worker.engine.families.conditioning import TEXT, in_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from worker.engine.families.conditioning import Conditioning
    from worker.engine.jobs.job import Adapters
    from worker.engine.loaded_model import LoadedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallLoras:
    """The LoRA weights of one call."""

    #: Factor on the scales of those of the model; None is 1.
    scale: float | None = None
    #: The adapters of each row.
    rows: Sequence[Adapters] = ()


NO_LORAS = CallLoras()
#: With `SAG_COMPILE`, calls are padded to one of these numbers of rows: each is compiled once.
COMPILED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class BatchedUnet:
    """One UNet on its device, and the number of rows that a call may have."""

    def __init__(
        self,
        model: LoadedModel,
        max_batch_rows: int | None,
        decoder_bytes: int,
        compiling: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Make no call, unless it is compiled. `measure` leaves `decoder_bytes` of memory free.

        Calls that compile a graph are made within `compiling`: they take minutes.
        """
        self._unet, self._compiled = model.pipeline.unet, model.compiled
        self._dtype = model.unet_dtype
        self._device, self._on_cpu = torch.device(model.device), model.device == "cpu"
        self._format = torch.contiguous_format if self._on_cpu else torch.channels_last
        self._processor = SagAttnProcessor()
        #: Whether a LoRA scale is a tensor, so that one compiled graph serves all scales.
        self._scale_as_tensor = model.compiled and bool(getattr(self._unet, "peft_config", None))
        self._compiling = compiling
        #: Rows, height, width, and whether texts have the usual length, of the compiled graphs.
        self._compiled_shapes: set[tuple[int, int, int, bool]] = set()
        #: Text length of the graphs that are compiled without other lengths.
        self._usual_tokens = model.family.tokens(model.pipeline)
        #: One CUDA event for each call that `pace` has not waited for.
        self._call_ends: deque[torch.cuda.Event] = deque()
        self._model, self._decoder_bytes = model, decoder_bytes
        self.capacity = warmup.unmeasured(model.pipeline, max_batch_rows)
        #: False until `measure`, unless `max_batch_rows` sets the rows of a call.
        self.is_measured = max_batch_rows is not None or model.compiled
        if model.compiled:  # takes minutes, as a part of loading
            self.capacity = warmup.capacity(model, self._call, max_batch_rows, decoder_bytes)

    def measure(self) -> None:
        """Measure the rows of one call, when more than one image waits for it.

        An error is only logged: the images' own calls meet it again, and fail the right jobs. Until
        then one row at a time is tried, and more when those fit.
        """
        self.is_measured = True
        try:
            with torch.inference_mode():
                self.capacity = warmup.capacity(self._model, self._call, None, self._decoder_bytes)
        except Exception as error:  # noqa: BLE001  # the device's or the model's
            logger.warning("rows of a UNet call can't be measured: %r", error)
            self.capacity = replace(
                self.capacity,
                rows=1.0,
                measured_rows=max(self.capacity.rows, self.capacity.measured_rows),
            )
            device_errors.clear_frames(error)

    def __call__(
        self,
        noisy: torch.Tensor,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        loras: CallLoras,
        sag_rows: int,
    ) -> tuple[torch.Tensor, Attention | None]:
        """The UNet's output, and the attention in the first `sag_rows` rows; None without them.

        `noisy` (rows, c, h, w) and the stacked `conditioning` of the rows give an output (rows, c,
        h, w) in float32. Raises what the device raises; out of memory, it lowers the capacity,
        which grows back when many calls have fitted.
        """
        rows, _, height, width = noisy.shape
        try:
            answer = self._call(noisy, timesteps, conditioning, loras, sag_rows)
        except RuntimeError as error:
            if not device_errors.is_out_of_memory(error):
                raise
            self.capacity = self.capacity.halved(rows, height, width)
            logger.warning(
                "UNet call out of memory: %d rows of %d x %d latents; row limit now half of that",
                rows, height, width,
            )  # fmt: skip
            raise
        self.capacity = self.capacity.after_call()
        return answer

    def to_device(self, numbers: Sequence[Sequence[float]] | Sequence[float]) -> torch.Tensor:
        """Copy numbers from the host to the device as float32, without waiting for it."""
        return device_memory.to_device(torch.tensor(numbers, dtype=torch.float32), self._device)

    def pace(self) -> None:
        """Wait for the call before the last one, so that the host is at most one call ahead.

        Otherwise steps would be reported before they are done. The device runs the last call
        meanwhile; nothing is read from it.
        """
        if self._on_cpu:
            return
        end = torch.cuda.Event(blocking=True)  # otherwise waiting for it keeps a core busy
        end.record(torch.cuda.current_stream(self._device))
        self._call_ends.append(end)
        if len(self._call_ends) > 1:
            self._call_ends.popleft().synchronize()

    def _call(
        self,
        noisy: torch.Tensor,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        loras: CallLoras = NO_LORAS,
        sag_rows: int = 0,
    ) -> tuple[torch.Tensor, Attention | None]:
        self._model.need("unet")
        rows, times = len(timesteps), self.to_device(timesteps)
        noisy = noisy.to(self._dtype, memory_format=self._format)
        conditioning = {n: in_precision(each, self._dtype) for n, each in conditioning.items()}
        if self._compiled:
            extra = next((n for n in COMPILED_ROWS if n >= rows), rows) - rows
            noisy, times = _padded(noisy, extra), _padded(times, extra)
            conditioning = {name: _padded(each, extra) for name, each in conditioning.items()}
            if not self._is_usual(conditioning):  # one graph for all other lengths above 1
                torch._dynamo.maybe_mark_dynamic(conditioning[TEXT], 1)  # noqa: SLF001  # torch's documented place
        scale: float | torch.Tensor | None = loras.scale
        if self._scale_as_tensor:
            scale = self.to_device([1.0 if loras.scale is None else loras.scale])[0]
        # A compiled call captures all rows; otherwise each number of SAG rows would be compiled.
        captured_rows = len(times) if self._compiled else sag_rows
        with (
            self._while_compiling(noisy, conditioning),
            lora_scaled(self._unet, scale),
            self._model.adapters.added(self._unet, loras.rows),
            capture_attention(self._unet, self._processor, captured_rows, self._model.sag_layer),
        ):
            output: torch.Tensor = self._unet(
                noisy,
                times,
                **self._model.family.arguments(conditioning),
                return_dict=False,
            )[0]
            sums = self._processor.sums
        if not sag_rows or sums is None:
            return output[:rows].float(), None
        return output[:rows].float(), Attention(sums[:sag_rows], self._processor.size)

    def _is_usual(self, conditioning: Conditioning) -> bool:
        """Whether the texts have the length for which a graph is compiled alone."""
        length = conditioning[TEXT].shape[1] if TEXT in conditioning else 0
        return bool(length == self._usual_tokens)

    @contextmanager
    def _while_compiling(self, noisy: torch.Tensor, conditioning: Conditioning) -> Iterator[None]:
        """Enter `compiling` if these shapes are new to a compiled UNet."""
        rows, _, height, width = noisy.shape
        shape = rows, height, width, self._is_usual(conditioning)
        if not self._compiled or shape in self._compiled_shapes:
            yield
            return
        self._compiled_shapes.add(shape)
        with self._compiling():
            yield


def _padded(rows: torch.Tensor, extra: int) -> torch.Tensor:
    """The last row so many times more."""
    return torch.cat([rows, rows[-1:].expand(extra, *rows.shape[1:])])
