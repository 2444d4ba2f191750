"""Objects in a real S3: uploads, inputs, presigned URLs, refusals and outages."""

from __future__ import annotations

import base64
import hashlib
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from tests.conftest import BUCKET
from worker import embedded, metrics
from worker.errors import BadRequestError, InputNotFoundError, StorageUnavailableError
from worker.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.settings import Settings


@pytest.fixture
def storage(settings: Settings) -> Storage:
    """A storage in the S3 server of this test run."""
    return Storage(settings)


def test_an_upload_has_its_type_and_digest(storage: Storage, settings: Settings) -> None:
    """An object is stored with its content type, and its digest is returned."""
    key = storage.key("task", "0.png")
    digest = storage.put(key, b"picture", "image/png")
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    stored = client.get_object(Bucket=BUCKET, Key=key)
    assert stored["Body"].read() == b"picture"
    assert stored["ContentType"] == "image/png"
    assert digest == hashlib.sha256(b"picture").hexdigest()
    assert key == f"{settings.s3_prefix}/task/0.png"


def test_the_server_checks_the_digest(s3: embedded.S3Server) -> None:
    """A body that does not match its sha256 is refused by the server."""
    client = boto3.client("s3", endpoint_url=s3.endpoint_url)
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=BUCKET, Key="digest", Body=b"this", ChecksumSHA256=wrong)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    with pytest.raises(ClientError):
        client.head_object(Bucket=BUCKET, Key="digest")


def test_a_presigned_url_reads_one_object(storage: Storage) -> None:
    """The URL reads its object without credentials; with another key it is refused."""
    key = storage.key("task", "1.png")
    storage.put(key, b"picture", "image/png")
    url = storage.presign(key)
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"picture"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(url.replace("1.png", "2.png"), timeout=10)


def test_presigned_urls_have_the_public_host(settings: Settings) -> None:
    """URLs have the host for callers, if set; without presigning there are none."""
    public = settings.model_copy(update={"s3_public_endpoint_url": "https://pictures.example"})
    assert str(Storage(public).presign("k")).startswith(f"https://pictures.example/{BUCKET}/k?")
    assert Storage(settings.model_copy(update={"presign_s": 0})).presign("k") is None


def test_an_input_is_read_below_its_prefix_only(storage: Storage, settings: Settings) -> None:
    """A reference is relative to the input prefix; an object elsewhere is not found."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    inside = f"{settings.s3_input_prefix}/a.safetensors"
    client.put_object(Bucket=BUCKET, Key=inside, Body=b"tensor")
    client.put_object(Bucket=BUCKET, Key="b.safetensors", Body=b"secret")
    assert storage.get_input("a.safetensors", "latents") == b"tensor"
    with pytest.raises(InputNotFoundError) as missing:
        storage.get_input("b.safetensors", "latents")
    assert missing.value.details == {"where": "latents"}


def test_an_input_that_is_too_large_is_not_read(
    storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read than the limit, whatever size is announced."""
    monkeypatch.setattr("worker.storage.MAX_INPUT_BYTES", 1024)
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    key = f"{settings.s3_input_prefix}/large.safetensors"
    client.put_object(Bucket=BUCKET, Key=key, Body=b"\0" * 1025)
    with pytest.raises(BadRequestError) as refused:
        storage.get_input("large.safetensors", "latents")
    assert refused.value.details["faults"][0]["where"] == "latents"


def test_wrong_settings_are_not_retried(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing credentials and an invalid bucket name fail at once."""
    patient = settings.model_copy(update={"s3_retry_s": 3600})
    odd = patient.model_copy(update={"s3_bucket": "No Bucket!"})
    with pytest.raises(StorageUnavailableError, match="settings of S3 are wrong"):
        Storage(odd).put("k", b"x", "text/plain")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageUnavailableError, match="credentials"):
        Storage(patient).put("k", b"x", "text/plain")


def test_a_refusal_is_not_retried(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong credentials fail at once."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    patient = settings.model_copy(update={"s3_retry_s": 3600})
    with pytest.raises(StorageUnavailableError, match="refused put_object"):
        Storage(patient).put("k", b"x", "text/plain")


def test_an_outage_beyond_the_limit_fails(settings: Settings) -> None:
    """When S3 does not answer for `s3_retry_s`, the error has the endpoint and the time."""
    port = embedded.free_port()
    unreachable = settings.model_copy(
        update={"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_retry_s": 0.5}
    )
    with pytest.raises(StorageUnavailableError, match=r"did not answer for 0\.5 s") as failed:
        Storage(unreachable).put("k", b"x", "text/plain")
    assert failed.value.error.retryable


def test_an_outage_within_the_limit_is_retried(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that are refused and answers that fail delay an upload, and no more."""
    storage = Storage(settings)
    client = storage._client(settings.s3_endpoint_url)
    real, failures = (
        client.put_object,
        [
            EndpointConnectionError(endpoint_url="http://s3"),
            ConnectionClosedError(endpoint_url="http://s3"),
            ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {}}, "PutObject"),
            ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"),
            TimeoutError(),
        ],
    )

    def put_object(**arguments: object) -> object:
        if failures:
            raise failures.pop(0)
        return real(**arguments)

    monkeypatch.setattr(client, "put_object", put_object)
    key = storage.key("late", "late.txt")  # in this test's folder: other tests share the bucket
    retries, count = metrics.S3_RETRIES._value.get(), len(failures)
    assert storage.put(key, b"late", "text/plain") == hashlib.sha256(b"late").hexdigest()
    assert failures == []
    assert metrics.S3_RETRIES._value.get() - retries == count


@pytest.mark.slow  # it starts a server; the failures above are its fast form
def test_an_upload_waits_for_the_server(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that begins while the server is down succeeds when it is up."""
    port = embedded.free_port()
    unreachable = settings.model_copy(
        update={"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_retry_s": 60}
    )
    attempted = threading.Event()
    storage = Storage(unreachable)
    call = storage._call

    def watched(*args: object, **kwargs: object) -> object:
        attempted.set()
        return call(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(storage, "_call", watched)
    digests: list[str] = []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "embedded")
    upload = threading.Thread(
        target=lambda: digests.append(storage.put("k", b"late", "text/plain"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _: "known")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "known")
        upload.start()
        assert attempted.wait(10)
        with embedded.s3_server(tmp_path, BUCKET, port):
            upload.join(60)
    assert digests == [hashlib.sha256(b"late").hexdigest()]
