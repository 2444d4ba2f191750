"""Runs the networks of one model: encode, evaluate, decode, for many jobs at once.

Knows no queue and no future. Runs on the engine's thread, but for `finish` and `preview`, which
wait for the device on the side thread.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import accelerate
import diffusers
import torch
import transformers

from worker.engine import checkpoint, prepare, previews
from worker.engine.batch_scheduler import DECODE_BATCH
from worker.engine.decoder import Decoder
from worker.engine.denoising import guidance, passes
from worker.engine.denoising.unet import BatchedUnet, CallLoras
from worker.engine.families.conditioning import stack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from worker.engine.denoising.sag_attention import Attention
    from worker.engine.image_state import Degraded, ImageState
    from worker.engine.jobs.job import GeneratedImage, Job
    from worker.engine.loaded_model import LoadedModel


class Runner:
    """One model on its device."""

    #: Versions of the libraries that the images depend on.
    versions: ClassVar[dict[str, str]] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }

    def __init__(
        self,
        model: LoadedModel,
        max_batch_rows: int | None,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Measure a decode on a GPU. `max_batch_rows` limits a UNet call; None measures it later.

        The UNet is compiled within `compiling`.
        """
        self.model, self.pipe = model, model.pipeline
        self._blurring = passes.Blurring(
            model.family.blur_radius, model.family.clip_range(model.pipeline)
        )
        #: With one row per call no call is shared, so a job's bytes depend on no other job.
        self._alone = max_batch_rows == 1
        model.need("vae")
        with torch.inference_mode():
            self.decoder = Decoder(model, 1 if self._alone else DECODE_BATCH)
            model.set_work_bytes("vae", self.decoder.needed_bytes)
            self.unet = BatchedUnet(model, max_batch_rows, self.decoder.needed_bytes, compiling)

    @cached_property
    def preview_map(self) -> previews.PreviewMap | None:
        """For `preview`; fitted on the engine's thread for the first job that wants previews."""
        self.model.need("vae")
        with torch.inference_mode():
            return previews.fit(self.model)

    @property
    def decode_moves_unet(self) -> bool:
        """Whether decoding would move networks now."""
        return self.model.must_move("vae")

    def check(self, job: Job) -> prepare.PreparedJob:
        """Validate a job against the model; raises `TaskFailedError`."""
        return prepare.check(self.model, job)

    def encode(self, prepared: Sequence[prepare.PreparedJob]) -> list[list[ImageState]]:
        """The images of each job, new or resumed from a checkpoint; encodes all prompts at once."""
        if any(each.job.preview_every for each in prepared):
            _ = self.preview_map
        groups = [[each] for each in prepared] if self._alone else [prepared]
        encoded: list[list[ImageState]] = []
        for group in groups:
            with torch.inference_mode():
                texts = [text for each in group for text in each.prompt_inputs.to_encode]
                known = self.model.family.encode(self.model, texts)
                encoded += [prepare.image_states(self.model, each, known) for each in group]
        # Not in inference mode, whose tensors a scheduler can't change in place in its `step`.
        return [
            images
            if each.job.checkpoint is None
            else checkpoint.resume(each.job.checkpoint, images)
            for each, images in zip(prepared, encoded, strict=True)
        ]

    @torch.inference_mode()
    def evaluate(self, images: Sequence[ImageState]) -> list[passes.StepOutput]:
        """Make one UNet call for the next pass of all images, which must share a bucket.

        Returns the evaluations that this call completes. Raises what the device raises; then no
        image has changed.
        """
        main = sorted(
            (image for image in images if image.degraded is None), key=passes.place_in_call
        )
        second = [(image, image.degraded) for image in images if image.degraded is not None]
        paired = [image for image in main if image.negative is not None]
        sag_rows = sum(image.uses_sag for image in main)
        noisy = [image.unet_input() for image in main]
        numbers = self.unet.to_device([
            image.numbers for image in (*main, *(image for image, _ in second))
        ])  # fmt: skip
        output, attention = self._call(main, paired, second, noisy, sag_rows)
        # A UNet that has learned the variance gives as many channels more.
        output, *more = output.split(self.model.latent_channels, dim=1)
        first, conditional, blurred = output.split([len(main), len(paired), len(second)])
        scale, alpha, sigma, sag_scale, threshold, rescale = numbers.view(-1, 6, 1, 1, 1).unbind(1)
        begin = main.index(paired[0]) if paired else 0
        rescales = any(image.job.guidance_rescale for image in paired)
        guided = passes.guided(first, conditional, scale, begin, rescale if rescales else None)
        variance = passes.of_class(more[0], len(main), len(paired), begin) if more else None
        evaluated = [
            passes.StepOutput(
                image,
                guided[row : row + 1],
                noisy[row],
                None if variance is None else variance[row : row + 1],
            )
            for row, image in enumerate(main)
        ]
        outputs = evaluated[sag_rows:]
        if second:
            outputs += passes.completed(second, blurred, sag_scale[len(main) :])
        if attention is not None:
            size = main[0].bucket.height, main[0].bucket.width
            salient = guidance.mask(*attention, size, threshold[:sag_rows].view(-1, 1))
            terms = salient, alpha, sigma
            passes.degrade(evaluated[:sag_rows], first, terms, self._blurring)
        return outputs

    def _call(
        self,
        main: Sequence[ImageState],
        paired: Sequence[ImageState],
        second: Sequence[tuple[ImageState, Degraded]],
        noisy: Sequence[torch.Tensor],
        sag_rows: int,
    ) -> tuple[torch.Tensor, Attention | None]:
        """The UNet over the first rows of `main`, the second ones of `paired`, and `second`.

        `noisy` is the input of each image of `main`.
        """
        noisy_of = dict(zip(main, noisy, strict=True))
        rows = [
            *((image, noisy_of[image], image.unconditional) for image in main),
            *((image, noisy_of[image], image.conditioning) for image in paired),
            *((image, each.noisy, image.unconditional) for image, each in second),
        ]
        inputs = torch.cat([z for _, z, _ in rows])
        # For inpainting; all images of a model have them, or none.
        channels = [image.channels for image, _, _ in rows if image.channels is not None]
        if channels:
            inputs = torch.cat([inputs, torch.cat(channels).to(inputs.dtype)], dim=1)
        return self.unet(
            inputs,
            [image.level.timestep for image, _, _ in rows],
            stack([conditioning for _, _, conditioning in rows]),
            CallLoras(rows[0][0].bucket.lora_scale, [image.job.adapters for image, _, _ in rows]),
            sag_rows,
        )

    @torch.inference_mode()
    def decode(self, images: Sequence[ImageState]) -> list[torch.Tensor | None]:
        """Each image on the device, (1, 3, height, width) in -1 … 1; None for output `latent`."""
        self.model.need("vae")
        return self.decoder.decode(images)

    @torch.inference_mode()
    def finish(
        self, images: Sequence[ImageState], decoded: Sequence[torch.Tensor | None]
    ) -> list[GeneratedImage]:
        """Images on the host, checked by the safety checker if the model has one.

        Waits for the device, so call it on the side thread. It runs no network but the checker.
        """
        return [
            self.decoder.generated(image, each) for image, each in zip(images, decoded, strict=True)
        ]

    def preview(self, scaled_x0: torch.Tensor, alpha: float) -> str | None:
        """A data URL that shows x0, given as alpha x0, (1, c, h, w). Call it on the side thread.

        Uses the linear map, or the decoder if the map is inaccurate and no network is offloaded;
        None without either.
        """
        latents = scaled_x0 / max(alpha, previews.MIN_ALPHA)
        found, offloads = self.preview_map, self.model.offload != "none"
        if found is not None and (offloads or found.unexplained <= previews.MAX_UNEXPLAINED):
            return found.data_url(latents)
        if offloads:
            return None
        with torch.inference_mode():
            decoded = self.decoder.picture(latents)
        return previews.data_url(decoded[0].float().cpu().movedim(0, -1))

    def offload_idle(self) -> None:
        """Move the networks off the device, unless offload keeps them there while it can."""
        if self.model.residency is not None and not self.model.residency.keeps:
            self.model.residency.clear()

    def make_room(self) -> None:
        """With offload, move the networks off the device: a call was out of memory."""
        if self.model.residency is not None:
            self.model.residency.clear()

    def close(self) -> None:
        """Release the device."""
        self.model.release()
