"""Files in a real S3: what arrives is what was sent, and an outage costs only time."""

from __future__ import annotations

import base64
import hashlib
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.conftest import BUCKET
from worker import embedded
from worker.errors import BadRequestError, InputNotFoundError, StorageUnavailableError
from worker.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.settings import Settings


@pytest.fixture
def storage(settings: Settings) -> Storage:
    """Over the session's S3 server."""
    return Storage(settings)


def test_what_is_put_is_there_with_its_type_and_digest(
    storage: Storage, settings: Settings
) -> None:
    """A file arrives whole, under its content type, and its digest is told."""
    key = storage.key("task", "0.png")
    digest = storage.put(key, b"picture", "image/png")
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    stored = client.get_object(Bucket=BUCKET, Key=key)
    assert stored["Body"].read() == b"picture"
    assert stored["ContentType"] == "image/png"
    assert digest == hashlib.sha256(b"picture").hexdigest()
    assert key == f"{settings.s3_prefix}/task/0.png"


def test_the_server_checks_the_digest(s3: embedded.S3Server) -> None:
    """A body that does not match the sha256 sent with it is refused by the server."""
    client = boto3.client("s3", endpoint_url=s3.endpoint_url)
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=BUCKET, Key="digest", Body=b"this", ChecksumSHA256=wrong)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    with pytest.raises(ClientError):
        client.head_object(Bucket=BUCKET, Key="digest")


def test_a_presigned_url_reads_the_file_and_no_other(storage: Storage) -> None:
    """Whoever has the URL has the file; a changed URL has nothing."""
    key = storage.key("task", "1.png")
    storage.put(key, b"picture", "image/png")
    url = storage.presign(key)
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"picture"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(url.replace("1.png", "2.png"), timeout=10)


def test_presigned_urls_name_the_public_host_or_none(settings: Settings) -> None:
    """Callers see the host that the settings name for them; without presigning they get no URL."""
    public = settings.model_copy(update={"s3_public_endpoint_url": "https://pictures.example"})
    assert str(Storage(public).presign("k")).startswith(f"https://pictures.example/{BUCKET}/k?")
    assert Storage(settings.model_copy(update={"presign_s": 0})).presign("k") is None


def test_an_input_comes_from_the_input_prefix_alone(storage: Storage, settings: Settings) -> None:
    """A reference is read below the input prefix; what lies elsewhere is not found."""
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
    """No more is read than may be used, whatever a look at its size would have said."""
    monkeypatch.setattr("worker.storage.MAX_INPUT_BYTES", 1024)
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    key = f"{settings.s3_input_prefix}/large.safetensors"
    client.put_object(Bucket=BUCKET, Key=key, Body=b"\0" * 1025)
    with pytest.raises(BadRequestError) as refused:
        storage.get_input("large.safetensors", "latents")
    assert refused.value.details["faults"][0]["where"] == "latents"


def test_what_cannot_be_asked_is_no_outage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing credentials and impossible names are told at once, as faults of the settings."""
    patient = settings.model_copy(update={"s3_retry_s": 3600})
    odd = patient.model_copy(update={"s3_bucket": "No Bucket!"})
    with pytest.raises(StorageUnavailableError, match="as it is set up"):
        Storage(odd).put("k", b"x", "text/plain")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageUnavailableError, match="credentials"):
        Storage(patient).put("k", b"x", "text/plain")


def test_wrong_keys_fail_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is no outage: it is told at once, without using up the retries."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    patient = settings.model_copy(update={"s3_retry_s": 3600})
    with pytest.raises(StorageUnavailableError, match="refused put_object"):
        Storage(patient).put("k", b"x", "text/plain")


def test_an_outage_longer_than_the_budget_is_told(settings: Settings) -> None:
    """When S3 stays away for the whole budget, the error says where and for how long."""
    port = embedded.free_port()
    away = settings.model_copy(
        update={"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_retry_s": 0.5}
    )
    with pytest.raises(StorageUnavailableError, match=r"did not answer for 0\.5 s") as failed:
        Storage(away).put("k", b"x", "text/plain")
    assert failed.value.error.retryable


def test_an_outage_shorter_than_the_budget_costs_only_time(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that begins while S3 is away ends well once it is back."""
    port = embedded.free_port()
    away = settings.model_copy(
        update={"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_retry_s": 60}
    )
    trying = threading.Event()
    storage = Storage(away)
    once = storage._once

    def watched(*args: object, **kwargs: object) -> object:
        trying.set()
        return once(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(storage, "_once", watched)
    digests: list[str] = []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "embedded")
    upload = threading.Thread(
        target=lambda: digests.append(storage.put("k", b"late", "text/plain"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _: "known")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "known")
        upload.start()
        assert trying.wait(10)
        with embedded.s3_server(tmp_path, BUCKET, port):
            upload.join(60)
    assert digests == [hashlib.sha256(b"late").hexdigest()]
