"""The result of a task that succeeded."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageResult(_Frozen):
    """One file in S3."""

    key: str = Field(description="In the bucket: `<prefix>/<task id>/<index>.<extension>`.")
    url: str | None = Field(description="Presigned; null when presigning is off.")
    sha256: str = Field(description="Of the file, in hexadecimal.")
    bytes: int = Field(ge=0, description="Of the file.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    seed: int = Field(ge=0, description="With which this one picture is made again.")
    nsfw_content_detected: bool | None = Field(description="Null without a safety checker.")


class Timings(_Frozen):
    """Where the time went, in seconds."""

    queued_s: float = Field(description="From submission to the device.")
    load_s: float = Field(description="Waiting for the pipeline to be built.")
    encode_s: float = Field(description="Prompt to embeddings.")
    denoise_s: float = Field(description="All steps, with those of others in between.")
    decode_s: float = Field(description="Latents to pixels, safety checker included.")
    upload_s: float = Field(description="Encoding the files and storing them.")
    total_s: float = Field(description="From submission to the end.")


class GenerationResult(_Frozen):
    """A finished task: its files, and what is needed to make them again."""

    images: list[ImageResult] = Field(description="Prompt by prompt, in the request's order.")
    manifest_key: str = Field(description="Of the JSON file that was stored last.")
    timings: Timings
    batch: float = Field(description="Mean number of jobs that shared this task's steps.")
    model: str = Field(description="Alias.")
    scheduler: str = Field(description="That was used.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The request with every default filled in."
    )
    truncated: list[str] = Field(
        default_factory=list,
        description="What of the prompts was beyond the text encoder's length and had no effect.",
    )
    versions: dict[str, str] = Field(description="Of what made it, by package.")
    dtype: str | None = Field(
        default=None,
        description="Precision of the UNet: float32, float16 or bfloat16; null from an older "
        "worker.",
    )
