"""The settings of the S3 store."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings


def _check_http_url(url: str | None) -> str | None:
    if url is not None and not re.match(r"https?://[^/\s]+", url):
        message = "must start with http:// or https:// and name a host"
        raise ValueError(message)
    if url is not None and "@" in url.split("/")[2]:
        message = "must contain no credentials: it is logged; use AWS_ACCESS_KEY_ID"
        raise ValueError(message)
    return url


HttpUrl = Annotated[str | None, AfterValidator(_check_http_url)]
#: A path of plain segments in S3, or the empty string.
Prefix = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*)?$")
]


class S3Settings(BaseSettings):
    """Where pictures are stored, and how."""

    s3_endpoint_url: HttpUrl = Field(default=None, description="Endpoint of S3. Default: AWS.")
    s3_public_endpoint_url: HttpUrl = Field(
        default=None, description="Endpoint in presigned URLs, if callers reach S3 by another one."
    )
    s3_bucket: str = Field(default="sag", min_length=3, description="Bucket of all objects.")
    s3_prefix: Prefix = Field(default="outputs", description="Key prefix of images and manifests.")
    s3_input_prefix: Prefix = Field(
        default="inputs", description="Key prefix of the objects that requests refer to."
    )
    s3_conditional_writes: bool = Field(
        default=True,
        description="Write an object only if no other worker has written it. `false` is for "
        "stores without conditional writes: see S3 stores.",
    )
    s3_checksums: bool = Field(
        default=True,
        description="Send SHA-256 with each object. `false` sends MD5, for stores without "
        "`x-amz-checksum-sha256`.",
    )
    s3_retry_s: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="Seconds for which a failed request to S3 is retried.",
    )
    presign_s: int = Field(
        default=3600,
        ge=0,
        le=604_800,
        description="Seconds for which a presigned URL is valid; 0 makes none.",
    )
