"""Encode, tick, decode, for many jobs at once. The only code that runs a network.

Knows no queue and no future: it is given jobs and lanes, and gives lanes and pictures back. All of
it runs on the engine's thread but `finish` and `preview`, which wait for the device beside it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import accelerate
import diffusers
import torch
import transformers

from worker.engine import guidance, prepare, previews, prompts
from worker.engine.batch_scheduler import DECODE_TOGETHER
from worker.engine.image_state import Degraded, ImageState
from worker.engine.job import Picture
from worker.engine.unet import BatchedUnet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.job import Job
    from worker.engine.model_loader import LoadedModel


@dataclass(frozen=True)
class StepOutput:
    """An evaluation that is complete: `lane.advance(output, noisy)` is to follow."""

    lane: ImageState
    output: torch.Tensor
    noisy: torch.Tensor


class Runner:
    """One model on its device."""

    #: Of what makes the pictures.
    versions: ClassVar[dict[str, str]] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }

    def __init__(self, model: LoadedModel, max_batch_rows: int | None) -> None:
        """Warm up; measures how many rows one call takes unless `max_batch_rows` says it."""
        self.model, self.pipe = model, model.pipeline
        #: Nothing of one job is computed together with another's, so that its bits are its own.
        self._apart = max_batch_rows == 1
        with torch.inference_mode():
            self.preview_map = previews.fit(self.pipe)
            self.network = BatchedUnet(model, max_batch_rows)

    @property
    def moves(self) -> bool:
        """Whether decoding throws the UNet off the device."""
        return self.model.offload != "none"

    def draft(self, job: Job) -> prepare.PreparedJob:
        """Check everything about a job that only the model can; raises `TaskFailedError`."""
        return prepare.check(self.pipe, job)

    @torch.inference_mode()
    def encode(self, drafted: Sequence[prepare.PreparedJob]) -> list[list[ImageState]]:
        """The lanes of each job; the texts of all of them go through the encoder together."""
        if self._apart and len(drafted) > 1:
            return [lanes for draft in drafted for lanes in self.encode([draft])]
        wordings = [draft.wording for draft in drafted]
        texts = [
            *itertools.chain.from_iterable(each.texts for each in wordings),
            *itertools.chain.from_iterable(
                each.negative_texts or () for each in wordings if each.negative_embeds is None
            ),
        ]
        encoded = prompts.encode(self.pipe, texts) if texts else {}
        return [prepare.lanes(self.pipe, draft, encoded) for draft in drafted]

    @torch.inference_mode()
    def tick(self, lanes: Sequence[ImageState]) -> list[StepOutput]:
        """One UNet call for all of the lanes, each in its phase; they must share a bucket.

        Gives the lanes whose evaluation is complete. Raises what the device raises; then no lane
        has changed.
        """
        # Those whose attention is listened to come first, so that their rows are a slice.
        main = sorted(
            (lane for lane in lanes if lane.degraded is None),
            key=lambda lane: not lane.is_self_guided,
        )
        paired = [number for number, lane in enumerate(main) if lane.negative is not None]
        second = [(lane, lane.degraded) for lane in lanes if lane.degraded is not None]
        noisy = [lane.noisy() for lane in main]
        inputs = [*noisy, *(noisy[n] for n in paired), *(each.noisy for _, each in second)]
        rows = [*main, *(main[n] for n in paired), *(lane for lane, _ in second)]
        embeds = [lane.unconditional for lane in rows]
        embeds[len(main) : len(main) + len(paired)] = [main[n].embeds for n in paired]
        sag_rows = sum(lane.is_self_guided for lane in main)
        scalars = self.network.put(
            [[lane.job.guidance_scale, lane.level.alpha, lane.level.sigma] for lane in main]
        )
        output, salient = self.network(
            torch.cat(inputs),
            [lane.level.timestep for lane in rows],
            torch.stack(embeds),
            lanes[0].bucket.lora_scale,
            sag_rows,
        )
        first, conditional, degraded = output.split([len(main), len(paired), len(second)])
        whole = [
            StepOutput(
                lane,
                each.guided + lane.job.sag_scale * (each.expected - degraded[n : n + 1]),
                each.main,
            )
            for n, (lane, each) in enumerate(second)
        ]
        scale, alpha, sigma = scalars.view(-1, 3, 1, 1, 1).unbind(1)
        guided = _guided(paired, first, conditional, scale)
        whole += [StepOutput(main[n], guided[n], noisy[n]) for n in range(sag_rows, len(main))]
        if salient is not None:
            _degrade(main[:sag_rows], noisy, first, guided, (salient, alpha, sigma))
        return whole

    @torch.inference_mode()
    def decode(self, lanes: Sequence[ImageState]) -> list[torch.Tensor | None]:
        """Each lane's picture on the device, (1, 3, height, width) in -1 … 1, None for `latent`."""
        found: dict[int, torch.Tensor] = {}
        wanted = [lane for lane in lanes if lane.job.output_type != "latent"]
        wanted.sort(key=lambda lane: lane.latents.shape)
        for _, group in itertools.groupby(wanted, key=lambda lane: lane.latents.shape):
            alike = list(group)
            together = 1 if self._apart else DECODE_TOGETHER
            for begin in range(0, len(alike), together):
                some = alike[begin : begin + together]
                found |= zip(map(id, some), self._decoded(some), strict=True)
        return [found.get(id(lane)) for lane in lanes]

    @torch.inference_mode()
    def finish(
        self, lanes: Sequence[ImageState], decoded: Sequence[torch.Tensor | None]
    ) -> list[Picture]:
        """Pictures on the host, looked at by the safety checker where the model has one.

        Waits for the device. May run beside the engine: it uses no network but the checker.
        """
        return [self._finished(lane, each) for lane, each in zip(lanes, decoded, strict=True)]

    def preview(self, clean: torch.Tensor, alpha: float) -> str:
        """A small picture of an x0, told as alpha x0, as a data URL. May run beside the engine.

        By the linear map, or by the autoencoder where the map is poor and nothing has to move.
        """
        latents = clean / max(alpha, previews.LEAST_ALPHA)
        if self.moves or self.preview_map.unexplained <= previews.UNEXPLAINED:
            return self.preview_map.data_url(latents)
        vae = self.pipe.vae
        with torch.inference_mode():
            latents = (latents / vae.config.scaling_factor).to(vae.dtype)
            decoded = vae.decode(latents, return_dict=False)[0]
        return previews.data_url(decoded[0].float().cpu().movedim(0, -1))

    def rest(self) -> None:
        """Nothing is left to do for now: with offload the device is given back.

        Not by `maybe_free_model_hooks`, which also moves the safety checker under the feet of the
        pictures that are being finished.
        """
        for hook in getattr(self.pipe, "_all_hooks", ()):
            hook.offload()

    def close(self) -> None:
        """Let go of the device; hooks would keep the model in a circle with itself."""
        if self.moves:
            self.pipe.remove_all_hooks()

    def _decoded(self, lanes: Sequence[ImageState]) -> list[torch.Tensor]:
        """Pictures of one size; where they do not fit together, in halves."""
        vae, half = self.pipe.vae, len(lanes) // 2
        try:
            latents = torch.cat([lane.latents for lane in lanes]) / vae.config.scaling_factor
            return list(vae.decode(latents, return_dict=False)[0].split(1))
        except torch.OutOfMemoryError:
            if not half:
                raise
        free_memory(self.model.device)
        return self._decoded(lanes[:half]) + self._decoded(lanes[half:])

    def _finished(self, lane: ImageState, decoded: torch.Tensor | None) -> Picture:
        factor = self.pipe.vae_scale_factor
        height, width = (side * factor for side in lane.latents.shape[-2:])
        if decoded is None:
            return Picture(lane.latents[0].float().cpu(), width, height, lane.seed, None)
        decoded, flags = self.pipe.run_safety_checker(decoded, decoded.device, decoded.dtype)
        pixels = self.pipe.image_processor.postprocess(
            decoded,
            output_type="np" if lane.job.output_type == "npy" else "pil",
            do_denormalize=[not flag for flag in flags] if flags is not None else None,
        )[0]
        return Picture(pixels, width, height, lane.seed, None if flags is None else bool(flags[0]))


def _guided(
    paired: list[int], first: torch.Tensor, conditional: torch.Tensor, scale: torch.Tensor
) -> list[torch.Tensor]:
    """The main pass of each lane, guided by the prompt where that is on; (1, c, h, w), float32."""
    guided = list(first.float().split(1))
    for row, number in enumerate(paired):
        unconditional, prompted = guided[number], conditional[row : row + 1]
        guided[number] = guidance.classifier_free(unconditional, prompted, scale[number])
    return guided


def _degrade(
    lanes: Sequence[ImageState],
    noisy: Sequence[torch.Tensor],
    first: torch.Tensor,
    guided: Sequence[torch.Tensor],
    terms: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Leave each of these lanes, the first of a main pass, what its degraded pass needs."""
    number = len(lanes)
    salient, alpha, sigma = terms
    degraded, expected = guidance.degrade(
        lanes[0].sampling.kinds[0],
        torch.cat(list(noisy[:number])),
        first[:number],
        salient,
        alpha[:number],
        sigma[:number],
    )
    parts = zip(lanes, noisy, degraded.split(1), expected.split(1), guided, strict=False)
    for lane, *each in parts:
        lane.degraded = Degraded(*each)


def free_memory(device: str) -> None:
    """Give the memory that no tensor holds back to the device, for whoever shares it."""
    if device != "cpu":
        torch.cuda.empty_cache()
