"""The tasks that every side of a comparison is given: same prompts, seeds, steps and scales."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.names import DEFAULT_PRIORITY
from worker.cli.demo import PROMPTS
from worker.engine.jobs.job import Job

if TYPE_CHECKING:
    import argparse

    from benchmarks.record import Cell

FIRST_SEED = 1000
SAG_SCALE = 0.75


@dataclass(frozen=True)
class Task:
    """One picture. The names are those of a request's fields."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    sag_scale: float
    #: Pixels; None is the model's own.
    height: int | None
    width: int | None
    #: None is the model's own.
    scheduler: str | None = None
    #: None is the contract's default.
    priority: int | None = None

    def request(self) -> dict[str, Any]:
        """For the client."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def job(self) -> Job:
        """For the engine; the seed tells tasks apart."""
        return Job(
            id=f"task-{self.seed}",
            model="default",
            prompts=(self.prompt,),
            negative_prompts=(),
            height=self.height,
            width=self.width,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            sag_scale=self.sag_scale,
            num_images_per_prompt=1,
            eta=0.0,
            seeds=(self.seed,),
            max_images=1,
            max_side_px=16_384,
            scheduler=self.scheduler,
            output_type="png",
            priority=DEFAULT_PRIORITY if self.priority is None else self.priority,
        )


def make(count: int, arguments: argparse.Namespace, steps: int | None = None) -> list[Task]:
    """`count` tasks, the prompts of the demo in turn; `steps` in place of the option's."""
    return [
        Task(
            prompt=PROMPTS[number % len(PROMPTS)],
            seed=FIRST_SEED + number,
            num_inference_steps=steps or arguments.steps,
            guidance_scale=_guidance_scale(arguments),
            sag_scale=SAG_SCALE,
            height=arguments.size_px,
            width=arguments.size_px,
        )
        for number in range(count)
    ]


def described(arguments: argparse.Namespace) -> dict[str, Cell]:
    """What all tasks have in common, for a result's options."""
    return {
        "steps": arguments.steps,
        "guidance_scale": _guidance_scale(arguments),
        "sag_scale": SAG_SCALE,
        "size_px": arguments.size_px,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a task is."""
    parser.add_argument("--steps", type=int, default=25, help="steps of a task")
    parser.add_argument(
        "--guidance-scale", type=float, help="3.0 for tiny-shapes, 7.5 for --sd15 unless given"
    )


def _guidance_scale(arguments: argparse.Namespace) -> float:
    """The option's, or what each model's own card says."""
    if arguments.guidance_scale is None:
        return 7.5 if arguments.sd15 else 3.0
    return float(arguments.guidance_scale)
