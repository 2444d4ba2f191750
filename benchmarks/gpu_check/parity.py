"""Part: random requests that share calls give what upstream or the plain loop gives alone."""

from __future__ import annotations

import dataclasses
import random
import time
from statistics import median
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check import reference
from benchmarks.gpu_check.rounds import Rounds
from tests.engine import random_requests
from worker.config.models import SHIPPED_MODEL, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.reference import Reference, References
    from benchmarks.gpu_check.setting import Setting
    from worker.config.models import Dtype
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel

SEED = 2024
#: Rows of a call: several calls are needed for the requests that are there together.
ROWS = 40
#: Largest difference in float32, in parts of the largest latent.
CLOSE = 1e-4
#: In half precision a picture counts as the same below this mean difference, of 255, and so many
#: of ten must be.
SAME_OF_255, SAME_OF_TEN = 4.0, 9
#: Samplers that draw noise at each step. Before torch 2.13 a seed gives other noise in half
#: precision than in float32: such requests can't be compared, and the others get their noise.
DRAW_NOISE = {"ddpm", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "euler_a", "kdpm2_a", "lcm"}


def run(setting: Setting, found: Finding) -> None:
    """The reference first, then the engine in both precisions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    dice = random.Random(SEED)  # noqa: S311  # no secret
    jobs = [random_requests.draw(dice, brief=setting.brief) for _ in range(setting.requests)]
    with reference.started() as processes:
        began_s = time.perf_counter()
        references = processes.of(jobs)
        found.note(f"The reference took {time.perf_counter() - began_s:.0f} s on the CPU.")
        apart = _float32(setting, found, processes, references)
        found.headline(
            f"float32: the largest difference of {len(jobs)} requests is {max(apart):.1e} of the "
            f"largest latent, the median {median(apart):.1e}."
        )
        _half(setting, found, processes, references)


def _float32(
    setting: Setting, found: Finding, processes: References, references: Sequence[Reference]
) -> list[float]:
    """Every request within `CLOSE`, or within what the reference itself moves by rounding."""
    latents = _together(setting, "float32", [each.job for each in references])
    apart = [each.apart(ours) for each, ours in zip(references, latents, strict=True)]
    for by in ("upstream", "the plain loop"):
        if of := [value for each, value in zip(references, apart, strict=True) if each.by == by]:
            _row(found, "float32", by, of)
    far = [
        (each.job, value)
        for each, value in zip(references, apart, strict=True)
        if not value <= CLOSE
    ]
    wrong = 0
    for (job, value), rounding in zip(
        far, processes.rounding([job for job, _ in far]), strict=True
    ):
        wrong += not rounding.explains(value)
        near = f", a cell is {rounding.margin:.1e} from the threshold" if rounding.is_near else ""
        found.note(
            f"float32, {job.scheduler}, {job.num_inference_steps} steps: {value:.1e} of the "
            f"largest latent; rounding moves the loop itself by {rounding.moved:.1e}{near}."
        )
    found.check("float32: every request is within 1e-4, or as far as rounding moves it",
                holds=not wrong)  # fmt: skip
    found.number("parity_float32", max(apart))
    return apart


def _half(
    setting: Setting, found: Finding, processes: References, references: Sequence[Reference]
) -> None:
    """Most of the decoded pictures must be nearly the same; the latents are only reported."""
    chosen = [each for each in references if not _draws_noise(each.job)]
    jobs = [dataclasses.replace(each.job, latents=each.noise) for each in chosen]
    latents = _together(setting, setting.half, jobs)
    apart = [each.apart(ours) for each, ours in zip(chosen, latents, strict=True)]
    pictures = [
        float((made - each.pictures).abs().mean())
        for each, made in zip(chosen, processes.pictures(latents), strict=True)
    ]
    same = sum(value < SAME_OF_255 for value in pictures)
    _row(found, setting.half, "both", apart, pictures)
    found.note(
        f"{setting.half}: {same} of {len(pictures)} requests' pictures differ by less than "
        f"{SAME_OF_255:g} of 255 on average. 0.5 % of the largest latent is typical of float16; a "
        "cell of the mask may fall on the other side. Samplers that draw noise are left out."
    )
    found.check(f"{setting.half}: nine of ten pictures are the same",
                holds=10 * same >= SAME_OF_TEN * len(pictures))  # fmt: skip
    found.number("parity_half_median", median(apart))


def _draws_noise(job: Job) -> bool:
    return job.scheduler in DRAW_NOISE or job.eta > 0


def _row(
    found: Finding,
    precision: str,
    by: str,
    apart: Sequence[float],
    pictures: Sequence[float] | None = None,
) -> None:
    found.row(
        precision=precision,
        reference=by,
        requests=len(apart),
        median_of_largest_latent=f"{median(apart):.1e}",
        most_of_largest_latent=f"{max(apart):.1e}",
        pictures_median_of_255=median(pictures) if pictures else None,
        pictures_most_of_255=max(pictures) if pictures else None,
    )


def _together(setting: Setting, dtype: Dtype, jobs: Sequence[Job]) -> list[torch.Tensor]:
    """The latents of all requests, made in one engine; they arrive some rounds apart."""
    dice = random.Random(SEED + 1)  # noqa: S311  # no secret
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, dtype=dtype)

    def change(model: LoadedModel) -> None:
        random_requests.under_sd15_noise(model.pipeline)

    rounds = Rounds(spec, setting.device, ROWS, change)
    futures = []
    for job in jobs:
        futures.append(rounds.submit(job))
        for _ in range(dice.choice((0, 0, 1, 3, 8))):
            rounds.step()
    while rounds.step():
        pass
    results = [future.result(timeout=0) for future in futures]
    return [torch.stack([image.pixels for image in result.images]) for result in results]
