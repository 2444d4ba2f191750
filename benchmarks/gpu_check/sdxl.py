"""Part: Stable Diffusion XL at its full size: memory against the count, pictures a second."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import full_size
from benchmarks import sdxl as configuration
from benchmarks.gpu_check import given
from benchmarks.gpu_check.rounds import Rounds
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.denoising.unet import NO_LORAS
from worker.engine.families.conditioning import stack
from worker.engine.families.stable_diffusion_xl import StableDiffusionXL
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from worker.engine.jobs.job import Job

WARM_STEPS = 2
_MIB = 2**20


def run(setting: Setting, found: Finding) -> None:
    """Build it on the device, count its memory, then the engine and diffusers' loop in turns."""
    unused = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False)
    rounds = Rounds(unused, setting.device, setting.max_batch_rows, load=_loader(setting, found))
    model = rounds.runner.model
    if setting.on_gpu:
        _memory(setting, found, rounds)
    else:
        found.note("Memory: only on a GPU.")
    for count in setting.xl_counts:
        for sag_scale in (0.0, 0.75):
            _point(setting, found, rounds, _Loop(model), count, sag_scale)
    found.note(
        f"Each picture: {setting.few_steps} steps, guidance {given.GUIDANCE_SCALE:g}. diffusers "
        "has no SAG for this family: its loop is `StableDiffusionXLPipeline`, one task at a time."
    )


def _loader(setting: Setting, found: Finding) -> Any:  # noqa: ANN401  # as `model_loader.load`
    def load(_spec: ModelSpec, device: str, _offload: str) -> LoadedModel:
        began_s = time.perf_counter()
        torch.manual_seed(0)
        with torch.device(device):
            pipe = configuration.pipeline(setting.scale, shallow=not setting.on_gpu)
        if setting.on_gpu:
            for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet):
                part.to(torch.float16)
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
            torch.cuda.empty_cache()
        pipe.set_progress_bar_config(disable=True)
        found.note(f"Built on {device} in {time.perf_counter() - began_s:.1f} s, random weights.")
        return LoadedModel(StableDiffusionXL(), pipe, device, "none")

    return load


def _memory(setting: Setting, found: Finding, rounds: Rounds) -> None:
    """Weights and UNet calls beside what `benchmarks.full_size` counts without memory."""
    counted = full_size.MODELS["sdxl"]
    meta, runner = full_size.pipeline(counted), rounds.runner
    parts = {name: getattr(runner.pipe, name) for name in counted.family.networks}
    weights = sum(map(full_size.weights_bytes, parts.values()))
    found.number("xl_weights_mib", weights / _MIB)
    allocated = torch.cuda.memory_allocated(setting.device)
    found.note(
        f"Weights {weights / _MIB:,.0f} MiB, {allocated / _MIB:,.0f} allocated; a decode needs "
        f"{runner.decoder.needed_bytes / _MIB:,.0f} MiB more."
    )
    for rows in setting.xl_rows:
        for sag_rows in (0, rows):
            grown = _call_bytes(setting, rounds, rows, sag_rows)
            expected = full_size.call_bytes(counted, meta, rows, sag_rows, setting.xl_px)
            found.row(
                call=f"{rows} rows, {sag_rows} with SAG",
                mib=grown / _MIB,
                mib_counted=expected / _MIB,
            )


def _call_bytes(setting: Setting, rounds: Rounds, rows: int, sag_rows: int) -> int:
    """What a call of the engine's UNet adds to the memory allocated before; made twice."""
    model, side = rounds.runner.model, setting.xl_px // 8
    like: dict[str, Any] = {"device": setting.device, "dtype": torch.float16}
    blank = {name: each.to(**like) for name, each in model.family.blank(model.pipeline).items()}
    conditioning = stack([blank] * rows)
    noisy = torch.zeros(rows, model.latent_channels, side, side, **like)
    before_bytes = torch.cuda.memory_allocated(setting.device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(setting.device)
        with torch.inference_mode():
            rounds.runner.unet(noisy, [1.0] * rows, conditioning, NO_LORAS, sag_rows)
    return torch.cuda.max_memory_allocated(setting.device) - before_bytes


def _point(
    setting: Setting, found: Finding, rounds: Rounds, loop: _Loop, count: int, sag_scale: float
) -> None:
    """The engine with that many tasks waiting; without SAG also diffusers' loop over them."""
    jobs = _jobs(setting, count, setting.few_steps, sag_scale)
    rounds.results(_jobs(setting, count, WARM_STEPS, sag_scale))
    ours, theirs = [], []
    for turn in range(setting.turns):
        began_s = time.perf_counter()
        results = rounds.results(jobs)
        ours.append(count / (time.perf_counter() - began_s))
        if sag_scale == 0:
            if turn == 0:
                loop.run(_jobs(setting, 1, WARM_STEPS, sag_scale))
            some = jobs[: setting.loop_pictures]
            began_s = time.perf_counter()
            loop.run(some)
            theirs.append(len(some) / (time.perf_counter() - began_s))
    found.row(
        waiting=count,
        sag_scale=sag_scale,
        engine_pictures_per_s=max(ours),
        loop_pictures_per_s=max(theirs, default=None),
        times_the_loop=max(ours) / max(theirs) if theirs else None,
        jobs_in_a_step=sum(each.batch for each in results) / count,
    )
    found.number(f"xl_pictures_per_s_at_{count}_sag_{sag_scale:g}", max(ours))
    found.headline(
        f"{max(ours):.3g} pictures a second of {setting.xl_px} px with {count} waiting, "
        f"sag_scale {sag_scale:g}."
    )


def _jobs(setting: Setting, count: int, steps: int, sag_scale: float) -> list[Job]:
    tasks = given.make(setting, count, steps, setting.xl_px)
    return [dataclasses.replace(each.job(), sag_scale=sag_scale) for each in tasks]


class _Loop:
    """diffusers' own pipeline over the same networks, one task after the other."""

    def __init__(self, model: LoadedModel) -> None:
        self._pipe = model.pipeline

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> None:
        """To pictures, decoded in the autoencoder's precision as the engine does."""
        pipe, vae = self._pipe, self._pipe.vae
        for each in jobs:
            latents = pipe(
                prompt=each.prompts[0],
                height=each.height,
                width=each.width,
                num_inference_steps=each.num_inference_steps,
                guidance_scale=each.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(each.seeds[0]),
                output_type="latent",
            ).images
            scaled = latents.to(vae.dtype) / vae.config.scaling_factor
            pipe.image_processor.postprocess(vae.decode(scaled, return_dict=False)[0])
