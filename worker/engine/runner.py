"""Encode, tick, decode, for many jobs at once. The only code that runs a network.

Knows no queue and no future: it is given jobs and lanes, and gives lanes and pictures back. All of
it runs on the engine's thread but `finish`, which waits for the device and runs beside it.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import accelerate
import diffusers
import torch
import transformers

from worker.engine import drafts, guidance, previews, prompts
from worker.engine.job import Picture
from worker.engine.lane import Degraded, Lane
from worker.engine.network import Network
from worker.engine.scheduler import DECODE_TOGETHER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.job import Job
    from worker.engine.models import LoadedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Advance:
    """An evaluation that is complete: `lane.advance(output, noisy)` is to follow."""

    lane: Lane
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
        with torch.inference_mode():
            self.preview_map = previews.fit(self.pipe)
            self.network = Network(model, max_batch_rows)

    @property
    def moves(self) -> bool:
        """Whether decoding throws the UNet off the device."""
        return self.model.offload != "none"

    def draft(self, job: Job) -> drafts.Draft:
        """Check everything about a job that only the model can; raises `TaskFault`."""
        return drafts.check(self.pipe, job)

    @torch.inference_mode()
    def encode(self, drafted: Sequence[drafts.Draft]) -> list[list[Lane]]:
        """The lanes of each job; the texts of all of them go through the encoder together."""
        wordings = [draft.wording for draft in drafted]
        texts = [
            *itertools.chain.from_iterable(each.texts for each in wordings),
            *itertools.chain.from_iterable(
                each.negative_texts or () for each in wordings if each.negative_embeds is None
            ),
        ]
        encoded = prompts.encode(self.pipe, texts) if texts else {}
        return [drafts.lanes(self.pipe, draft, encoded) for draft in drafted]

    @torch.inference_mode()
    def tick(self, lanes: Sequence[Lane]) -> list[Advance]:
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
        listened = sum(lane.is_self_guided for lane in main)
        output, salient = self.network(
            torch.cat(inputs),
            [lane.level.timestep for lane in rows],
            torch.stack(embeds),
            lanes[0].bucket.lora_scale,
            listened,
        )
        first, conditional, degraded = output.split([len(main), len(paired), len(second)])
        guided = _guided(main, paired, first, conditional)
        if salient is not None:
            _degrade(main[:listened], noisy, first, guided, salient)
        whole = [
            Advance(
                lane,
                each.guided + lane.job.sag_scale * (each.expected - degraded[n : n + 1]),
                each.main,
            )
            for n, (lane, each) in enumerate(second)
        ]
        return whole + [
            Advance(lane, guided[n : n + 1], noisy[n])
            for n, lane in enumerate(main)
            if n >= listened
        ]

    @torch.inference_mode()
    def decode(self, lanes: Sequence[Lane]) -> list[torch.Tensor | None]:
        """Each lane's picture on the device, (1, 3, height, width) in -1 … 1, None for `latent`."""
        vae, found = self.pipe.vae, dict[int, torch.Tensor]()
        wanted = [lane for lane in lanes if lane.job.output_type != "latent"]
        wanted.sort(key=lambda lane: lane.latents.shape)
        for _, group in itertools.groupby(wanted, key=lambda lane: lane.latents.shape):
            alike = list(group)
            for begin in range(0, len(alike), DECODE_TOGETHER):
                some = alike[begin : begin + DECODE_TOGETHER]
                latents = torch.cat([lane.latents for lane in some]) / vae.config.scaling_factor
                decoded = vae.decode(latents, return_dict=False)[0].split(1)
                found |= {id(lane): each for lane, each in zip(some, decoded, strict=True)}
        return [found.get(id(lane)) for lane in lanes]

    @torch.inference_mode()
    def finish(
        self, lanes: Sequence[Lane], decoded: Sequence[torch.Tensor | None]
    ) -> list[Picture]:
        """Pictures on the host, looked at by the safety checker where the model has one.

        Waits for the device. May run beside the engine: it uses no network but the checker.
        """
        return [self._finished(lane, each) for lane, each in zip(lanes, decoded, strict=True)]

    def preview(self, clean: torch.Tensor, alpha: float) -> str:
        """A small picture of an x0, told as alpha x0, as a data URL. May run beside the engine."""
        return self.preview_map.data_url(clean / max(alpha, previews.LEAST_ALPHA))

    def free_memory(self) -> None:
        """Give the memory that no tensor holds back to the device, for whoever shares it."""
        if self.model.device != "cpu":
            torch.cuda.empty_cache()

    def rest(self) -> None:
        """Nothing is left to do for now: give back what is only needed while there is."""
        self.pipe.maybe_free_model_hooks()

    def _finished(self, lane: Lane, decoded: torch.Tensor | None) -> Picture:
        factor = self.pipe.vae_scale_factor
        height, width = (side * factor for side in lane.latents.shape[-2:])
        if decoded is None:
            return Picture(lane.latents[0].float().cpu(), width, height, lane.seed, None)
        device = self.pipe._execution_device  # noqa: SLF001  # diffusers' own way to ask
        decoded, flags = self.pipe.run_safety_checker(decoded, device, self.pipe.unet.dtype)
        pixels = self.pipe.image_processor.postprocess(
            decoded,
            output_type="np" if lane.job.output_type == "npy" else "pil",
            do_denormalize=[not flag for flag in flags] if flags is not None else None,
        )[0]
        return Picture(pixels, width, height, lane.seed, None if flags is None else bool(flags[0]))


def _guided(
    main: Sequence[Lane], paired: list[int], first: torch.Tensor, conditional: torch.Tensor
) -> torch.Tensor:
    """The main pass, guided by the prompt where that is on; in float32."""
    guided = first.float()
    if paired:
        scales = [main[number].job.guidance_scale for number in paired]
        scale = torch.tensor(scales, device=first.device).view(-1, 1, 1, 1)
        guided = guided.clone()
        guided[paired] = guidance.classifier_free(first[paired], conditional, scale)
    return guided


def _degrade(
    lanes: Sequence[Lane],
    noisy: Sequence[torch.Tensor],
    first: torch.Tensor,
    guided: torch.Tensor,
    salient: torch.Tensor,
) -> None:
    """Leave each of these lanes, the first of a main pass, what its degraded pass needs."""
    together = torch.cat(list(noisy[: len(lanes)]))
    alpha, sigma = _column(lanes, "alpha", first.device), _column(lanes, "sigma", first.device)
    kind = lanes[0].sampling.kinds[0]
    degraded, expected = guidance.degrade(
        kind, together, first[: len(lanes)], salient, alpha, sigma
    )
    for number, lane in enumerate(lanes):
        row = slice(number, number + 1)
        lane.degraded = Degraded(noisy[number], degraded[row], expected[row], guided[row])


def _column(lanes: Sequence[Lane], name: str, device: torch.device) -> torch.Tensor:
    """A number of each lane's level, (lanes, 1, 1, 1)."""
    numbers = [getattr(lane.level, name) for lane in lanes]
    return torch.tensor(numbers, device=device).view(-1, 1, 1, 1)
