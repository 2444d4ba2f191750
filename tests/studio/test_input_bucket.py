"""The studio's folder in the input bucket: what is stored, and what is deleted later."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from examples.studio import inputs
from examples.studio.input_bucket import KEEP, BucketAway, InputBucket
from tests.conftest import BUCKET
from tests.pictures import FILES
from tests.service.conftest import wait_until
from tests.studio.drawings import picture

if TYPE_CHECKING:
    from worker.config.settings import Settings


def test_a_photo_of_a_phone_is_a_jpeg(bucket: InputBucket) -> None:
    """Of a file of several photos the first is read, as workers do."""
    key = bucket.store(FILES["photo of a phone"]())
    assert key.endswith(".jpg")
    found = bucket.load(key)
    assert found is not None
    assert found[1] == "image/jpeg"


@pytest.mark.parametrize(("value", "is_sent"), [(None, True), ("false", False), ("0", False)])
def test_checksums_are_sent_unless_turned_off(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, value: str | None, is_sent: bool
) -> None:
    """As workers do with `SAG_S3_CHECKSUMS`: some stores refuse what they do not know."""
    for name, each in (environment | ({"SAG_S3_CHECKSUMS": value} if value else {})).items():
        monkeypatch.setenv(name, each)
    bucket = InputBucket.from_environment()
    assert bucket is not None
    sent: list[set[str]] = []

    def look(request: Any, **_: Any) -> None:
        sent.append({name.lower() for name in request.headers})

    bucket._client.meta.events.register("before-send.s3.PutObject", look)
    assert bucket.load(bucket.store(picture())) == (picture(), "image/png")
    (headers,) = sent
    assert any("checksum" in name for name in headers) is is_sent


def test_old_pictures_are_deleted_and_nothing_else(
    bucket: InputBucket, settings: Settings, environment: dict[str, str]
) -> None:
    """Those of the last day stay, and so does what others put below the input prefix."""
    import boto3

    client = boto3.client("s3", endpoint_url=environment["SAG_S3_ENDPOINT_URL"])
    other = {"Bucket": BUCKET, "Key": f"{settings.s3_input_prefix}/studio-of-others/a.png"}
    client.put_object(Body=b"a", **other)
    keys = [bucket.store(picture()) for _ in range(3)]
    assert bucket.delete_older_than(KEEP) == 0
    assert all(bucket.load(key) for key in keys)
    assert bucket.delete_older_than(timedelta(0)) == 3
    assert [bucket.load(key) for key in keys] == [None] * 3
    assert client.get_object(**other)["Body"].read() == b"a"


def test_a_studio_deletes_old_pictures_by_itself(
    bucket: InputBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it starts, and again after a pause, also after S3 was away."""
    monkeypatch.setattr(inputs, "KEEP", timedelta(0))
    monkeypatch.setattr(inputs, "SWEEP_S", 0.01)
    calls = []
    real = InputBucket.delete_older_than

    def delete(self: InputBucket, age: timedelta) -> int:
        calls.append(age)
        if len(calls) == 1:
            raise BucketAway("away")
        return real(self, age)

    monkeypatch.setattr(InputBucket, "delete_older_than", delete)

    def is_gone(key: str) -> bool:
        return bucket.load(key) is None

    async def run() -> None:
        async with inputs.opened_bucket():
            for _ in range(2):
                key = await asyncio.to_thread(bucket.store, picture())
                await asyncio.to_thread(wait_until, partial(is_gone, key))

    asyncio.run(run())
    assert len(calls) >= 3
