"""The small S3 server answers boto3 and the worker's storage as S3 does."""

from __future__ import annotations

import base64
import hashlib
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from benchmarks.gpu_check import s3
from worker.config.settings import Settings
from worker.errors import InputNotFoundError
from worker.storage import Storage, SupersededError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "small"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server with one bucket."""
    with s3.server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        address = f"http://{s3.LOOPBACK}:{server.server_port}"
        connect(address).create_bucket(Bucket=BUCKET)
        yield address
        server.shutdown()
        thread.join()


@pytest.fixture
def client(url: str) -> Any:
    return connect(url)


@pytest.fixture
def storage(url: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The worker's own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Storage(Settings(s3_endpoint_url=url, s3_bucket=BUCKET, s3_retry_s=0))


def connect(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="any",
        aws_secret_access_key="any",
        region_name="us-east-1",
    )


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        call(Bucket=BUCKET, **arguments)
    answer = refused.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_objects(client: Any) -> None:
    """An object is read with its type, metadata and ETag, listed in order, and removed."""
    for key in ("a/2", "a/1 ü", "b"):
        client.put_object(
            Bucket=BUCKET, Key=key, Body=key.encode(), ContentType="image/png", Metadata={"n": "7"}
        )
    there = client.get_object(Bucket=BUCKET, Key="a/1 ü")
    assert there["Body"].read() == "a/1 ü".encode()
    assert (there["ContentType"], there["Metadata"]) == ("image/png", {"n": "7"})
    head = client.head_object(Bucket=BUCKET, Key="b")
    assert head["ETag"] == f'"{hashlib.md5(b"b").hexdigest()}"'
    assert head["ContentLength"] == 1
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="a/")
    assert [each["Key"] for each in listed["Contents"]] == ["a/1 ü", "a/2"]
    client.delete_object(Bucket=BUCKET, Key="b")
    assert refusal(client.get_object, Key="b") == (404, "NoSuchKey")
    with pytest.raises(ClientError):
        client.head_object(Bucket=BUCKET, Key="b")


def test_buckets(client: Any) -> None:
    """A bucket is made once; without it there are no objects."""
    with pytest.raises(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    with pytest.raises(client.exceptions.NoSuchBucket):
        client.put_object(Bucket="other", Key="a", Body=b"")


def test_conditions(client: Any) -> None:
    """If-None-Match writes only a new object, If-Match only over the one that was seen."""
    client.put_object(Bucket=BUCKET, Key="c", Body=b"1", IfNoneMatch="*")
    failed = (412, "PreconditionFailed")
    assert refusal(client.put_object, Key="c", Body=b"2", IfNoneMatch="*") == failed
    seen = client.head_object(Bucket=BUCKET, Key="c")["ETag"]
    client.put_object(Bucket=BUCKET, Key="c", Body=b"2", IfMatch=seen)
    assert refusal(client.put_object, Key="c", Body=b"3", IfMatch=seen) == failed
    assert refusal(client.put_object, Key="none", Body=b"3", IfMatch=seen) == (404, "NoSuchKey")
    assert client.get_object(Bucket=BUCKET, Key="c")["Body"].read() == b"2"


def test_checksums(client: Any) -> None:
    """A body that its SHA-256 or MD5 does not match is refused."""
    sha256 = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    status, _ = refusal(client.put_object, Key="d", Body=b"this", ChecksumSHA256=sha256)
    assert status == 400
    md5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    assert refusal(client.put_object, Key="d", Body=b"this", ContentMD5=md5) == (400, "BadDigest")


def test_the_storage_of_the_worker(storage: Storage) -> None:
    """The worker's storage can store, replace, fence, presign and check on the small S3 server."""
    key = storage.key("task", "0.png")
    digest = storage.put(key, b"first", "image/png")
    assert digest == hashlib.sha256(b"first").hexdigest()
    storage.put(key, b"second", "image/png")
    with pytest.raises(SupersededError):
        storage.put(key, b"third", "image/png", is_owner=lambda: False)
    url = storage.presign(key)
    assert url is not None
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.read() == b"second"
    with pytest.raises(InputNotFoundError):
        storage.get_input("nothing", "latents")
    assert storage.check("me") is not None
    assert storage.trouble is None
