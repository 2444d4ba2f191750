"""One job of the engine: what is asked, how it is stopped, what comes out. No torch here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Stop(StrEnum):
    """Why a job ends before it is done."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DRAINED = "drained"
    #: Another worker has claimed the task.
    SUPERSEDED = "superseded"


class JobStopped(Exception):
    """The job was stopped after `step` steps; the pipeline is as it was before."""

    def __init__(self, reason: Stop, step: int) -> None:
        super().__init__(f"{reason} at step {step}")
        self.reason = reason
        self.step = step


@dataclass(frozen=True)
class Job:
    """What to make. The names are diffusers'; every default is filled in but the model's own."""

    id: str
    model: str
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    sag_scale: float
    num_images_per_prompt: int
    eta: float
    #: One for each image, or one that counts up.
    seeds: tuple[int, ...]
    max_images: int
    scheduler: str | None
    output_type: str
    preview_every: int = 0
    #: Last layers of the text encoder that are left out.
    clip_skip: int | None = None
    #: Of the model's LoRA weights; None is as loaded.
    lora_scale: float | None = None
    #: Safetensors files of one tensor each, as bytes.
    latents: bytes | None = None
    prompt_embeds: bytes | None = None
    negative_prompt_embeds: bytes | None = None
    #: Steps between two checkpoints; 0 is none.
    checkpoint_every: int = 0
    #: What an earlier attempt left. One that is of no use costs a warning.
    checkpoint: bytes | None = None


@dataclass(frozen=True)
class Step:
    """A step is done."""

    step: int
    total_steps: int
    #: Seconds that the steps left will take, by the mean of those done.
    eta_s: float
    #: Data URL of a small picture, where one was asked for.
    preview: str | None = None


@dataclass
class Control:
    """The other threads' hold on a job: what they ask takes effect before its next UNet call."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    #: On the monotonic clock.
    deadline_s: float | None = None
    #: Gets a step, and what another attempt goes on from. The pictures of all jobs wait for it.
    on_checkpoint: Callable[[int, bytes], None] = field(default=lambda _step, _state: None)
    _reason: Stop | None = None

    def request(self, reason: Stop) -> None:
        """Stop before the next UNet call; the first reason given stays."""
        self._reason = self._reason or reason

    def asked(self) -> Stop | None:
        """Why to stop now, or None to go on."""
        if self._reason is None and self.deadline_s is not None:
            return Stop.EXPIRED if time.monotonic() > self.deadline_s else None
        return self._reason

    def obey(self, step: int) -> None:
        """Raise `JobStopped` when somebody asked for it."""
        if (reason := self.asked()) is not None:
            raise JobStopped(reason, step)


@dataclass(frozen=True)
class Timing:
    """Seconds of a job inside the engine."""

    wait_s: float
    load_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class Picture:
    """One image: `pixels` is a PIL image, floats (h, w, 3) in 0 … 1, or latents (c, h, w)."""

    pixels: Any
    width: int
    height: int
    seed: int
    nsfw_content_detected: bool | None


@dataclass(frozen=True)
class JobResult:
    """What a job gives."""

    pictures: tuple[Picture, ...]
    timing: Timing
    scheduler: str
    #: Mean number of jobs in its steps.
    batch: float
    versions: dict[str, str]
    #: What of the prompts was beyond the text encoder's length and had no effect.
    truncated: tuple[str, ...] = ()
    #: Step of the checkpoint that it went on from.
    resumed_from_step: int | None = None
