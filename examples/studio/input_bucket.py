"""Pictures in the workers' input bucket: checked, stored under a random key, deleted later.

It needs boto3 and Pillow, and nothing of the worker; without `SAG_S3_BUCKET` neither is imported.
"""

from __future__ import annotations

import io
import os
import secrets
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter

from api_contracts import FieldError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

#: Largest file, in bytes, and longest side of its picture, in pixels.
MAX_BYTES, MAX_SIDE_PX = 16 * 2**20, 4096
#: Formats that workers read, as Pillow names them, and the ends of their keys.
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
MEDIA_TYPES = tuple(f"image/{name.lower()}" for name in ENDINGS)
#: The studio's own folder below the input prefix: only what lies there is read and deleted.
FOLDER = "studio"
#: A key that `store` made, without the input prefix.
KEY_PATTERN = rf"^{FOLDER}/[0-9a-f]{{32}}\.({'|'.join(ENDINGS.values())})$"
#: How long a picture is kept: longer than any task should wait.
KEEP = timedelta(days=1)
#: Socket timeouts of S3, in seconds, and attempts of a request: the page asks again by itself.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 3, 20, 2

#: Answers of S3 that may be others later: from 500 on, and those to requests too slow or too many.
SERVER_FAULT, RETRIED_STATUSES = 500, (408, 429)


class BucketError(Exception):
    """S3 does not take or give pictures."""


class BucketAway(BucketError):
    """S3 does not answer, or can't serve now: later it may."""


class BucketRefuses(BucketError):
    """S3 refuses what the studio asks: its credentials, bucket or rights. The same again later."""


class InputBucket:
    """The studio's folder in the input bucket. Its calls block; threads may share it."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:  # noqa: ANN401  # boto3 clients have no type
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @classmethod
    def from_environment(cls) -> Self | None:
        """The bucket of the workers' variables; None unless `SAG_S3_BUCKET` names one.

        Credentials come from boto3's own chain. `SAG_S3_CHECKSUMS=false` is for stores that know
        none of boto3's checksums.
        """
        bucket = os.environ.get("SAG_S3_BUCKET")
        if not bucket:
            return None
        import boto3  # noqa: PLC0415  # a studio without a bucket does not need it
        from botocore.config import Config  # noqa: PLC0415  # the same

        endpoint_url = os.environ.get("SAG_S3_ENDPOINT_URL") or None
        checksums = TypeAdapter(bool).validate_python(os.environ.get("SAG_S3_CHECKSUMS", "true"))
        client = boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            config=Config(
                signature_version="s3v4",
                request_checksum_calculation="when_supported" if checksums else "when_required",
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            ),
        )
        return cls(client, bucket, os.environ.get("SAG_S3_INPUT_PREFIX", "inputs").strip("/"))

    def store(self, data: bytes) -> str:
        """Check and store a picture; gives its key without the input prefix, as requests name it.

        Raises `InvalidRequest` and `BucketError`.
        """
        format_name = checked_format(data)
        key = f"{FOLDER}/{secrets.token_hex(16)}.{ENDINGS[format_name]}"
        content_type = f"image/{format_name.lower()}"
        self._call("put_object", Key=self._prefix + key, Body=data, ContentType=content_type)
        return key

    def load(self, key: str) -> tuple[bytes, str] | None:
        """A picture and its media type; None if there is none with this key any more."""
        with _in_words():
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except self._client.exceptions.NoSuchKey:
                return None
            return found["Body"].read(), found["ContentType"]

    def delete_older_than(self, age: timedelta) -> int:
        """Delete the studio's pictures that were stored longer ago; gives how many."""
        before = datetime.now(UTC) - age
        old = [each["Key"] for each in self._stored() if each["LastModified"] <= before]
        for key in old:
            self._call("delete_object", Key=key)
        return len(old)

    def _stored(self) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2")
        with _in_words():
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}{FOLDER}/"):
                yield from page.get("Contents", [])

    def _call(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401  # boto3's own replies
        with _in_words():
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)


@contextmanager
def _in_words() -> Iterator[None]:
    """Raise `BucketError` for whatever boto3 raises."""
    from botocore import exceptions as boto  # noqa: PLC0415  # as boto3

    try:
        yield
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise BucketAway(f"S3 does not answer: {error}") from error
    except boto.ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", SERVER_FAULT)
        if status >= SERVER_FAULT or status in RETRIED_STATUSES:
            raise BucketAway(f"S3 does not take or give pictures now: {error}") from error
        raise BucketRefuses(f"S3 refuses it: {error}") from error
    except boto.BotoCoreError as error:  # no credentials, an impossible name
        raise BucketRefuses(f"the settings of S3 are wrong: {error}") from error


def checked_format(data: bytes) -> str:
    """The format of a picture, as Pillow names it; raises `InvalidRequest` if it is unfit.

    All of it is decoded: a file that is cut off is refused here and not by a worker later. What
    takes long to decode is not refused, as workers do: the page draws what it sends, and the studio
    is for one's own machine.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # as boto3

    try:
        with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
            _check(image)
            image.load()
            # An MPO is a JPEG, followed by others that a camera made of it.
            return "JPEG" if image.format == "MPO" else str(image.format)
    except (InvalidRequest, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise refusal("is no picture that workers read", "PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        raise refusal("has too many pixels", f"<= {MAX_SIDE_PX} a side") from error
    except Exception as error:  # malformed files raise anything
        raise refusal(f"can't be decoded: {error}", "a whole file") from error


def _check(image: Image.Image) -> None:
    """What is known of a file before it is decoded."""
    if max(image.size) > MAX_SIDE_PX:
        what = f"has {image.width} x {image.height} pixels"
        raise refusal(what, f"<= {MAX_SIDE_PX} a side")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise refusal("is animated", "one picture")
    if image.mode.startswith("I"):
        raise refusal("is gray with 16 bits for each pixel", "8 bits for each channel")


def refusal(what: str, limit: str) -> InvalidRequest:
    """The error that refuses a picture."""
    return InvalidRequest([FieldError(where="image", what=what[:300], limit=limit)])
