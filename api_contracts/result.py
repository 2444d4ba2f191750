"""What a task gives when it succeeds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageResult(_Frozen):
    """One file in S3."""

    key: str
    url: str | None = Field(description="Presigned; null when presigning is off.")
    sha256: str = Field(description="Of the file, in hexadecimal.")
    bytes: int
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    seed: int
    nsfw_content_detected: bool | None = Field(description="Null without a safety checker.")


class Timings(_Frozen):
    """Where the time went, in seconds."""

    queued_s: float = Field(description="From submission to the device.")
    load_s: float = Field(description="Waiting for the pipeline to be built.")
    encode_s: float = Field(description="Prompt to embeddings.")
    denoise_s: float
    decode_s: float = Field(description="Latents to pixels, safety checker included.")
    upload_s: float = Field(description="Encoding the files and storing them.")
    total_s: float = Field(description="From submission to the end.")


class GenerationResult(_Frozen):
    """A finished task: its files, and what is needed to make them again."""

    images: list[ImageResult]
    manifest_key: str
    timings: Timings
    batch: float = Field(description="Mean number of jobs that shared this task's steps.")
    model: str
    scheduler: str
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The request with every default filled in."
    )
    truncated: list[str] = Field(
        default_factory=list,
        description="What of the prompts was beyond the text encoder's length and had no effect.",
    )
    versions: dict[str, str]
