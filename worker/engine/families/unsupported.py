"""Fields of requests, and of jobs, that only models of some families take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.engine.jobs.job import Job

#: A request's field, and the job's, for models of two text encoders.
OF_TWO_ENCODERS = {
    "prompt_2": "prompts_2",
    "negative_prompt_2": "negative_prompts_2",
    "pooled_prompt_embeds": "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds": "negative_pooled_prompt_embeds",
    "original_size": "original_size",
    "crops_coords_top_left": "crops_coords_top_left",
    "target_size": "target_size",
}
#: For models of latents: texts, pictures to start from, LoRA.
OF_LATENTS = {
    "prompt": "prompts",
    "negative_prompt": "negative_prompts",
    "prompt_embeds": "prompt_embeds",
    "negative_prompt_embeds": "negative_prompt_embeds",
    "clip_skip": "clip_skip",
    "cross_attention_kwargs": "lora_scale",
    "loras": "loras",
    "image": "image",
    "mask_image": "mask_image",
    **OF_TWO_ENCODERS,
}
#: For pixel-space models.
OF_PIXELS = {"class_labels": "class_labels"}


def faults(job: Job, fields: Mapping[str, str], family: str) -> Iterator[FieldError]:
    """One for each of the fields that a job has; `family` is the title of its model's."""
    for where, name in fields.items():
        if getattr(job, name) not in (None, ()):
            what = f"has no meaning for a {family} model"
            yield FieldError(where=where, what=what, limit="null")
