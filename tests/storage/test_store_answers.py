"""Answers of a store: which are trouble, and which setting an error names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from tests.conftest import BUCKET
from worker import metrics
from worker.errors import StorageUnavailableError
from worker.s3_client import NotFoundError, RetryableError
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings


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
