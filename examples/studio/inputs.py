"""Endpoints for pictures to start from and masks; `app.py` has those for tasks."""
# no `from __future__ import annotations`: FastAPI reads the annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request, Response
from starlette.requests import ClientDisconnect

from examples.studio.input_bucket import (
    KEEP,
    KEY_PATTERN,
    MAX_BYTES,
    MEDIA_TYPES,
    BucketError,
    InputBucket,
    refusal,
)

#: Seconds between two deletions of old pictures.
SWEEP_S = 3600.0
#: Longest side of a picture to start from unless the page's user sets one, in pixels.
SIDE_PX = 512

router = APIRouter(prefix="/inputs")


@asynccontextmanager
async def opened_bucket() -> AsyncIterator[InputBucket | None]:
    """The input bucket, if there is one; old pictures are deleted from it at once and then hourly.

    What was stored last is deleted by the next studio that starts.
    """
    bucket = InputBucket.from_environment()
    if bucket is None:
        yield None
        return
    sweeping = asyncio.create_task(_sweep(bucket))
    try:
        yield bucket
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _sweep(bucket: InputBucket) -> None:
    while True:
        try:
            await asyncio.to_thread(bucket.delete_older_than, KEEP)
        except BucketError as error:  # the next hour may be better
            logging.getLogger(__name__).warning("old pictures are not deleted: %s", error)
        await asyncio.sleep(SWEEP_S)


def bucket_of(request: Request) -> InputBucket:
    """The bucket that `opened_bucket` made; 404 where the studio has none."""
    bucket: InputBucket | None = request.state.bucket
    if bucket is None:
        what = "This studio has no bucket for pictures: its README says how to give it one."
        raise HTTPException(404, what)
    return bucket


Bucket = Annotated[InputBucket, Depends(bucket_of)]


@router.get("")
async def defaults(_bucket: Bucket) -> dict[str, int]:
    """The longest side that the page gives to a picture by itself, in pixels."""
    return {"side_px": int(os.environ.get("STUDIO_SIDE_PX", SIDE_PX))}


@router.post("", status_code=201)
async def store(
    request: Request, bucket: Bucket, content_type: Annotated[str, Header()]
) -> dict[str, str]:
    """Store the picture that is the request's body; gives the key for the request's fields."""
    if content_type not in MEDIA_TYPES:  # other sites' pages may send other types unasked
        raise refusal(f"has the content type {content_type}", f"one of {', '.join(MEDIA_TYPES)}")
    return {"key": await asyncio.to_thread(bucket.store, await _body(request))}


async def _body(request: Request) -> bytes:
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BYTES:
                raise refusal("is too large", f"<= {MAX_BYTES} bytes")
    except ClientDisconnect as error:  # the client is gone
        raise HTTPException(400, "The picture came in part.") from error
    return bytes(data)


@router.get("/{key:path}")
async def load(key: Annotated[str, Path(pattern=KEY_PATTERN)], bucket: Bucket) -> Response:
    """A picture that was stored here, for a page that is opened again."""
    found = await asyncio.to_thread(bucket.load, key)
    if found is None:
        raise HTTPException(404, "The picture that it started from is not kept any more.")
    data, content_type = found
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
    return Response(data, media_type=content_type, headers=headers)
