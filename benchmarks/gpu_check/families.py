"""Part: all families, pictures to start from, masks and SAG's parameters, sharing calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from benchmarks.gpu_check.rounds import Rounds
from tests.engine import oracle, pictures, random_requests, small_models
from tests.engine.jobs import job
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from worker.config.models import Dtype
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel

#: Largest difference in float32, in parts of the largest latent, as in the part `parity`.
CLOSE = 1e-4
#: Steps of a job; a picture to start from leaves 0.6 of them.
STEPS = 8
#: Rows of a call: the jobs of a model do not fit into one.
ROWS = 8
#: Samplers, in turn: one by timesteps, two by sigmas, one of two evaluations a step.
SAMPLERS = ("ddim", "euler", "dpmpp_2m", "heun")
#: What jobs differ in, in turn, beside the sampler.
SAG_PARAMETERS: tuple[dict[str, Any], ...] = (
    {},
    {"sag_blur_sigma": 2.5, "sag_mask_threshold": 0.8},
    {"sag_start": 0.25, "sag_stop": 0.75, "guidance_rescale": 0.7},
    {"sag_blur_sigma": 0.5, "guidance_scale": 1.0},
    {"sag_scale": 0.0},
)
XL, PIXELS = "Stable Diffusion XL", "pixels"


def run(setting: Setting, found: Finding) -> None:
    """Each model's jobs alone by the plain loop on the CPU, then together on the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    most = 0.0
    for name, path in _models(Path(setting.folder)).items():
        jobs = _jobs(name, many=setting.on_gpu)
        spec = ModelSpec(path=str(path), safety_checker=False, dtype="float32")
        pipe = model_loader.load(spec, "cpu", "none").pipeline
        if name != PIXELS:
            random_requests.under_sd15_noise(pipe)
        alone = [oracle.alone(pipe, each) for each in jobs]
        together = _together(path, setting.device, "float32", jobs)
        apart = [_apart(*each) for each in zip(together, alone, strict=True)]
        far = [each for each, value in zip(jobs, apart, strict=True) if not value <= CLOSE]
        wrong = [
            each
            for each in far
            if not _is_rounding(pipe, each, apart[jobs.index(each)], alone[jobs.index(each)])
        ]
        half = _together(path, setting.device, setting.half, jobs)
        halves = sorted(_apart(*each) for each in zip(half, alone, strict=True))
        found.row(
            model=name,
            jobs=len(jobs),
            most_of_largest_latent=f"{max(apart):.1e}",
            beyond=len(far),
            half_median=f"{halves[len(halves) // 2]:.1e}",
            half_most=f"{halves[-1]:.1e}",
        )
        for each in wrong:
            found.note(f"{name}, {each.id}: further from the plain loop than rounding moves it.")
        found.check(f"{name}: every job is within 1e-4, or as far as rounding moves it",
                    holds=not wrong)  # fmt: skip
        most = max(most, *apart)
    found.number("families_float32", most)
    found.headline(f"float32: the largest difference is {most:.1e} of the largest latent.")
    found.note(
        f"The columns `half` are of {setting.half}, as latents: a cell of the mask may fall on the "
        "other side of the threshold, and a sampler that draws noise draws other noise."
    )


def _models(folder: Path) -> dict[str, Path]:
    """Small ones with random weights, and the bundled one, by what they stand for."""
    return {
        "Stable Diffusion": SHIPPED_MODEL,
        "Stable Diffusion for inpainting": small_models.save_inpainting(folder / "inpainting"),
        XL: small_models.save_xl(folder / "xl"),
        PIXELS: small_models.save_pixels(folder / "pixels", scheduler=_learned(), out_channels=6),
    }


def _learned() -> Any:  # noqa: ANN401  # diffusers has no types
    """The scheduler of a model that has learned the variance."""
    return diffusers.DDPMScheduler(variance_type="learned_range", beta_end=0.012)


def _jobs(model: str, *, many: bool) -> list[Job]:
    """From noise, from a picture, and with a mask; a model for inpainting only with a mask."""
    starts: tuple[Callable[[], dict[str, Any]], ...] = (
        dict, pictures.picture, pictures.masked,
    )  # fmt: skip
    if model.endswith("for inpainting"):
        starts = (pictures.masked,)
    if model == PIXELS:
        starts = (dict,)
    made: list[Job] = []
    for start in starts:
        for number, sag_parameters in enumerate(SAG_PARAMETERS if many else SAG_PARAMETERS[:3]):
            sampler = SAMPLERS[(number + len(made)) % len(SAMPLERS)]
            changes: dict[str, Any] = {
                "num_inference_steps": STEPS,
                "scheduler": sampler,
                "seeds": (number,),
            }
            if model == XL:
                changes |= {"prompts_2": ("a blue ring",), "original_size": (512, 256)}
            changes |= sag_parameters
            if model == PIXELS:
                changes |= {"prompts": (), "guidance_scale": 1.0, "guidance_rescale": 0.0}
            name = f"{start.__name__}-{number}-{sampler}"
            made.append(job(**({"id": name} | changes | start())))
    return made


def _under_sd15_noise(model: LoadedModel) -> None:
    if model.family.encoders:
        random_requests.under_sd15_noise(model.pipeline)


def _together(path: Path, device: str, dtype: Dtype, jobs: list[Job]) -> list[torch.Tensor]:
    """The latents of all jobs, which arrive a round apart."""
    spec = ModelSpec(path=str(path), safety_checker=False, dtype=dtype)
    rounds = Rounds(spec, device, ROWS, _under_sd15_noise)
    futures = []
    for each in jobs:
        futures.append(rounds.submit(each))
        rounds.step()
    while rounds.step():
        pass
    results = [future.result(timeout=0) for future in futures]
    return [torch.stack([image.pixels for image in result.images]) for result in results]


def _apart(latents: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in parts of the largest latent; infinite where one is NaN."""
    difference = (latents - expected).abs().max() / expected.abs().max()
    return float(difference.nan_to_num(float("inf")))


def _is_rounding(pipe: Any, each: Job, apart: float, alone: torch.Tensor) -> bool:  # noqa: ANN401  # diffusers has no types
    """Whether rounding alone may make such a difference, as `reference.Rounding` has it."""
    moved = _apart(oracle.alone(oracle.crowded(pipe), each), alone)
    margin = oracle.threshold_margin(pipe, each)
    is_near = margin < max(random_requests.NEAR_THRESHOLD, moved)
    return apart <= random_requests.ROUNDINGS * moved or is_near
