"""The parts of the check, in order of worth, and their limits in seconds. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class Part:
    """One question, answered in a process of its own by `run` of a module of a package."""

    #: Of the module, and of its files.
    name: str
    #: Of its section in the page.
    title: str
    #: What is done, in a sentence or two.
    what: str
    #: Seconds after which it is ended.
    limit_s: float
    #: Seconds without which it is not started.
    needs_s: float
    #: Whether it runs the model of Stable Diffusion 1.5's size, which the part `weights` builds.
    sd15: bool = True
    #: Whether there is nothing to rehearse on a CPU.
    gpu_only: bool = False
    #: Of the modules; another one in tests.
    package: str = __package__


PARTS = (
    Part("environment", "Environment",
         "The GPU and its driver as NVML and torch tell them.",
         60, 5, sd15=False),
    Part("weights", "Weights of Stable Diffusion 1.5's size",
         "Random weights in float16, built on the device and saved: nothing is downloaded.",
         90, 10, sd15=False),
    Part("parity", "Parity with upstream",
         "Random requests in company (samplers, sizes, scales and arrivals mixed) on the bundled "
         "UNet under Stable Diffusion 1.5's noise schedule, TF32 off. The reference runs on the "
         "CPU in float32: `StableDiffusionSAGPipeline` where upstream is right, else the plain "
         "loop of tests/engine/plain_loop.py.",
         110, 30, sd15=False),
    Part("families", "Families, pictures, masks and SAG's own parameters",
         "Small models of Stable Diffusion XL and for inpainting, and the bundled one: jobs from "
         "noise, from a picture and with a mask, together, with different blurs, thresholds, "
         "windows and rescales. The reference is the plain loop on the CPU in float32, TF32 off.",
         60, 20, sd15=False),
    Part("throughput", "Throughput against upstream's loop",
         "The engine with tasks waiting, and upstream's pipeline one task after the other, in "
         "turns, both to decoded pictures. The best turn counts.",
         110, 35),
    Part("sdxl", "Stable Diffusion XL at its full size",
         "Random weights, built on the device. The memory of UNet calls beside what "
         "benchmarks/full_size.py counts, then pictures a second against diffusers' loop.",
         90, 40, sd15=False),
    Part("arithmetic", "Arithmetic against the matrix peak",
         "UNet calls alone. The peak is the fastest of several matrix products in the same "
         "precision, measured in the same process.",
         60, 20),
    Part("adapters", "LoRA adapters by request",
         "Jobs of no, one and several adapters together, and each alone with its adapters active "
         "in peft, all cells salient, TF32 off; once with offload. Then UNet calls whose rows have "
         "adapters in turn, over calls without any.",
         60, 20),
    Part("full_memory", "Out of memory, and on",
         "The engine loads on a free device; then another process takes nearly all of its memory, "
         "and more tasks come than fit one call.",
         70, 25),
    Part("offload", "Offload modes",
         "Two tasks in each mode after one that warms up. The last row is `auto` with little "
         "memory free.",
         80, 30),
    Part("daemon", "The daemon against its bare engine",
         "The same tasks through `sag-worker run` (Redis, S3, PNG, the public client) and through "
         "the engine alone, in turns, never more at once than the daemon's slots.",
         100, 45),
    Part("successor", "A worker killed in a call, and its successor",
         "`sag-worker run`; SIGKILL to the worker's process when its tasks are half-way.",
         70, 35),
    Part("resume", "Checkpoints across processes",
         "A job is drained at a step in one process and resumed in another one: its latents must "
         "be, byte for byte, those of the job left alone.",
         60, 25),
    Part("rows", "Rows that were measured, rows that fit",
         "The limit of the engine's warm-up beside the largest call that fits into the memory.",
         60, 25),
    Part("cold_start", "Cold start",
         "From the command `sag-worker run` to the first picture, the task waiting already; and "
         "imports in a fresh interpreter.",
         70, 30),
    Part("energy", "Energy of a picture",
         "NVML's total energy of the GPU over a run with 16 waiting tasks.",
         50, 20, gpu_only=True),
    Part("compiled", "A compiled UNet",
         "`SAG_COMPILE` for two numbers of rows only: each takes tens of seconds to compile.",
         170, 40, gpu_only=True),
)  # fmt: skip
#: Run in any case: the first tells whether the device can be used; weights are for `sd15`.
FIRST, WEIGHTS = "environment", "weights"
BY_NAME = {part.name: part for part in PARTS}


def chosen(names: Collection[str]) -> list[Part]:
    """The parts of these names with those that they need, in order; without names all."""
    wanted = {FIRST, *names} if names else set(BY_NAME)
    if any(BY_NAME[name].sd15 for name in wanted):
        wanted.add(WEIGHTS)
    return [part for part in PARTS if part.name in wanted]
