"""Stores that lack a feature, or have an authority of their own: named, and served by a setting."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from tests.conftest import BUCKET
from tests.hostile.tls import Authority
from tests.storage.stores import Lacks, store
from worker import embedded, metrics, s3_client
from worker.doctor.servers import check_s3
from worker.errors import StorageUnavailableError
from worker.s3_client import STORE_IS_FULL, NotFoundError, RetryableError
from worker.storage import Storage, SupersededError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker.config.settings import Settings

#: What a store lacks, the setting that does without it, and a part of the error.
CASES = {
    Lacks.CONDITIONS: ("s3_conditional_writes", "NotImplemented"),
    Lacks.IGNORES_CONDITIONS: ("s3_conditional_writes", "ignores If-None-Match"),
    Lacks.CHECKSUMS: ("s3_checksums", "InvalidArgument"),
}
#: Variables that name trusted authorities.
AUTHORITIES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


@pytest.mark.slow  # each of its checks makes a client of boto3
@pytest.mark.parametrize("lacks", CASES, ids=[each.name.lower() for each in CASES])
def test_doctor_names_what_a_store_lacks(settings: Settings, lacks: Lacks) -> None:
    """And the setting without which it can be used; with that setting it is well."""
    setting, error = CASES[lacks]
    with store(settings.s3_endpoint_url or "", lacks) as url:
        there = settings.model_copy(update={"s3_endpoint_url": url})
        (found,) = check_s3(there)
        assert not found.ok
        assert error in found.found
        assert found.fix.endswith(f"turn off: SAG_{setting.upper()}=false")
        assert all(each.ok for each in check_s3(there.model_copy(update={setting: False})))


def test_a_full_store_is_said_to_be_full(settings: Settings) -> None:
    """By `doctor`, by the error of a task, and by `trouble`."""
    with store(settings.s3_endpoint_url or "", Lacks.ROOM) as url:
        full = settings.model_copy(update={"s3_endpoint_url": url})
        (found,) = check_s3(full)
        assert (found.ok, found.fix) == (False, STORE_IS_FULL)
        storage = Storage(full)
        with pytest.raises(StorageUnavailableError, match=STORE_IS_FULL) as refused:
            storage.put(storage.key("task", "full.png"), b"picture", "image/png")
    assert storage.trouble == str(refused.value)


def answer(status: int, code: str) -> ClientError:
    """What boto3 raises for an error's answer."""
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "Operation",
    )


def answering(settings: Settings, reply: Callable[[str], Any]) -> Storage:
    """A storage whose store gives `reply` to each operation: a value, or an error to raise."""

    def operation(name: str) -> Callable[..., Any]:
        def call(**_: object) -> Any:
            if isinstance(given := reply(name), Exception):
                raise given
            return given

        return call

    storage = Storage(settings.model_copy(update={"s3_retry_s": 0.0}))
    storage._clients[settings.s3_endpoint_url] = SimpleNamespace(
        meta=SimpleNamespace(endpoint_url=settings.s3_endpoint_url),
        **{
            f"{name}_object": operation(f"{name}_object")
            for name in ("head", "put", "get", "delete")
        },
    )
    return storage


@pytest.mark.parametrize(
    ("error", "is_trouble"),
    [
        (answer(503, "SlowDown"), True),
        (answer(507, "XMinioStorageFull"), True),
        (answer(400, "ExpiredToken"), True),
        (ReadTimeoutError(endpoint_url="http://store"), True),
        (NoCredentialsError(), True),
        (answer(404, "NoSuchKey"), False),
        (answer(409, "ConditionalRequestConflict"), False),
        (answer(412, "PreconditionFailed"), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("operation", ["head_object", "put_object", "get_object"])
def test_trouble_is_that_of_the_last_call(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    error: Exception,
    is_trouble: bool,
) -> None:
    """Of any operation; counted, and gone as soon as the store answers well.

    A missing object and one that was written meanwhile are such answers.
    """
    replies: dict[str, Any] = {operation: error}
    storage = answering(settings, replies.get)
    address = {"Bucket": BUCKET, "Key": "key"}
    counted: list[None] = []
    monkeypatch.setattr(metrics.S3_FAILURES, "inc", lambda: counted.append(None))
    for earlier in (None, "earlier"):
        storage.trouble = earlier
        with pytest.raises((NotFoundError, RetryableError, StorageUnavailableError)):
            storage._call(operation, address)
        assert storage.trouble != "earlier"
        assert (storage.trouble is not None) == is_trouble
    assert len(counted) == 2 * is_trouble
    replies.clear()
    storage._call("head_object", address)
    assert storage.trouble is None


def test_an_object_that_ends_early_is_trouble(settings: Settings) -> None:
    """The connection ended before the announced size was read."""
    body = SimpleNamespace(read=lambda _: b"half")
    storage = answering(settings, lambda _: {"Body": body, "ContentLength": 8})
    with pytest.raises(StorageUnavailableError, match="4 of 8 bytes"):
        storage.get_input("input.safetensors", "latents")
    assert "4 of 8 bytes" in str(storage.trouble)


def test_a_check_without_an_answer_is_no_success(settings: Settings) -> None:
    """A store that is silent about the condition has not been found to heed it."""
    puts: list[Any] = [{}, ReadTimeoutError(endpoint_url="http://store")]
    others = {"head_object": answer(404, "404"), "delete_object": "removed"}
    storage = answering(settings, lambda name: others.get(name) or puts.pop(0))
    with pytest.raises(StorageUnavailableError, match="Read timeout"):
        storage.check("owner")


@pytest.mark.parametrize(
    ("status", "code", "is_hinted"),
    [
        (501, "NotImplemented", True),
        (501, "", True),
        (400, "NotImplemented", True),
        (400, "InvalidArgument", True),
        (400, "InvalidRequest", True),
        (400, "ExpiredToken", False),
        (400, "AuthorizationHeaderMalformed", False),
        (400, "BadDigest", False),
        (403, "InvalidRequest", False),
    ],
)
def test_weaker_promises_are_advised_to_weak_stores_only(
    settings: Settings, status: int, code: str, is_hinted: bool
) -> None:
    """Not where the keys have expired: without conditions a late writer could replace a picture."""
    replies = {"head_object": answer(404, "404"), "put_object": answer(status, code)}
    storage = answering(settings, replies.get)
    with pytest.raises(StorageUnavailableError) as refused:
        storage.put("key", b"picture", "image/png")
    assert ("SAG_S3_CONDITIONAL_WRITES" in str(refused.value)) == is_hinted


def test_a_check_that_fails_leaves_nothing_behind(settings: Settings) -> None:
    """What `doctor` wrote into a store that ignores conditions is removed."""
    with store(settings.s3_endpoint_url or "", Lacks.IGNORES_CONDITIONS) as url:
        storage = Storage(settings.model_copy(update={"s3_endpoint_url": url}))
        with pytest.raises(StorageUnavailableError, match="ignores If-None-Match"):
            storage.check("owner")
        client = storage._client(url)
        assert "Contents" not in client.list_objects_v2(
            Bucket=BUCKET, Prefix=storage.key(".doctor", "")
        )


def test_another_refusal_is_not_blamed_on_the_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong keys stay wrong keys."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (found,) = check_s3(settings)
    assert "AWS credentials" in found.fix


@pytest.mark.parametrize("lacks", CASES, ids=[each.name.lower() for each in CASES])
def test_a_store_is_served_by_a_weaker_promise(settings: Settings, lacks: Lacks) -> None:
    """Objects are stored, replaced by a later attempt, and not by a former owner.

    Without the setting the error of a store that refuses names it.
    """
    setting, error = CASES[lacks]
    with store(settings.s3_endpoint_url or "", lacks) as url:
        if lacks is not Lacks.IGNORES_CONDITIONS:
            strict = Storage(settings.model_copy(update={"s3_endpoint_url": url}))
            with pytest.raises(StorageUnavailableError, match=error) as refused:
                strict.put(strict.key("task", "refused.png"), b"first", "image/png")
            assert f"SAG_{setting.upper()}" in str(refused.value)
        storage = Storage(settings.model_copy(update={"s3_endpoint_url": url, setting: False}))
        key = storage.key("task", f"{lacks.name}.png")
        for data in (b"first", b"second", b"second"):
            storage.put(key, data, "image/png")
        client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"second"
        with pytest.raises(SupersededError):
            storage.put(key, b"late", "image/png", lambda: False)
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"second"


def test_the_server_checks_md5_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SHA-256 a body that was damaged on its way is refused all the same."""
    storage = Storage(settings.model_copy(update={"s3_checksums": False}))
    wrong = {"ContentMD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}  # of nothing
    monkeypatch.setattr("worker.storage._checksum", lambda *_, **__: wrong)
    with pytest.raises(StorageUnavailableError, match=r"Digest|MD5"):
        storage.put(storage.key("task", "md5.png"), b"picture", "image/png")


@pytest.mark.slow  # as above
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_the_environment_names_the_authority(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As for Redis and webhooks; without it `doctor` says what to set, not that keys are wrong."""
    for each in AUTHORITIES:  # of the machine that runs the tests
        monkeypatch.delenv(each, raising=False)
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files(embedded.LOOPBACK))
    with store(settings.s3_endpoint_url or "", context=context) as url:
        there = settings.model_copy(update={"s3_endpoint_url": url})
        (found,) = check_s3(there)
        assert (found.ok, "SSL_CERT_FILE" in found.fix) == (False, True)
        monkeypatch.setenv(variable, str(authority.certificate))
        assert [each for each in check_s3(there) if not each.ok] == []


@pytest.mark.parametrize("endpoint_url", ["https://store.example", None])
@pytest.mark.parametrize(
    ("named", "trusted"),
    [
        ({"SSL_CERT_FILE": "openssl"}, "openssl"),
        ({"SSL_CERT_FILE": "openssl", "REQUESTS_CA_BUNDLE": "requests"}, "requests"),
        ({"SSL_CERT_FILE": "openssl", "AWS_CA_BUNDLE": "aws"}, "aws"),
        ({"SSL_CERT_FILE": "openssl", "AWS_CONFIG_FILE": "config"}, "of-config"),
        ({"REQUESTS_CA_BUNDLE": "requests", "AWS_CONFIG_FILE": "config"}, "of-config"),
        ({"SSL_CERT_FILE": ""}, None),
        ({}, None),
    ],
    ids=lambda each: "+".join(each) if isinstance(each, dict) else str(each),
)
def test_openssls_authority_is_for_private_stores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint_url: str | None,
    named: dict[str, str],
    trusted: str | None,
) -> None:
    """AWS itself is not known to a private authority; boto3's own variables and files come first.

    `True` are the authorities that boto3 brings along.
    """
    (tmp_path / "config").write_text("[default]\nca_bundle = of-config\nregion = us-east-1\n")
    monkeypatch.chdir(tmp_path)
    for each in (*AUTHORITIES, "AWS_CONFIG_FILE"):
        monkeypatch.delenv(each, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    client = s3_client.connect(endpoint_url, checksums=True)
    expected = None if trusted == "openssl" and endpoint_url is None else trusted
    assert client._endpoint.http_session._verify == (expected or True)


def test_the_endpoint_is_named_wherever_it_comes_from(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one from AWS_ENDPOINT_URL is not called AWS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", settings.s3_endpoint_url or "")
    first, *_ = check_s3(settings.model_copy(update={"s3_endpoint_url": None}))
    assert first.found.startswith(f"{settings.s3_endpoint_url}, bucket ")
