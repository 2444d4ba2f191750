"""Answers of S3 to a fenced upload: which are retried, and which end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.conftest import BUCKET
from tests.storage.watched import PNG, Watched
from worker.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings
    from worker.storage import Storage


def refusal(status: int, code: str) -> ClientError:
    """An answer of S3 as boto3 raises it."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "operation")


def test_storing_needs_no_permission_to_list(
    storage: Watched,
    settings: Settings,
    key: str,
    read_object: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without that permission S3 answers 403 for a missing object; the upload decides."""

    def refuse(**_: object) -> None:
        raise refusal(403, "403")

    monkeypatch.setattr(storage._client(settings.s3_endpoint_url), "head_object", refuse)
    storage.put(key, b"image", PNG, lambda: True)
    assert read_object(key)[0] == b"image"


def test_a_404_for_a_conditional_upload_is_retried(
    storage: Watched,
    other: Storage,
    settings: Settings,
    key: str,
    read_object: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AWS answers 404 when the object to replace was removed; the next check finds none."""
    other.put(key, b"old", PNG)
    client = storage._client(settings.s3_endpoint_url)
    real = client.put_object

    def vanish(**arguments: Any) -> Any:
        monkeypatch.setattr(client, "put_object", real)
        client.delete_object(Bucket=BUCKET, Key=key)
        raise refusal(404, "NoSuchKey")

    monkeypatch.setattr(client, "put_object", vanish)
    storage.put(key, b"new", PNG, lambda: True)
    assert read_object(key)[0] == b"new"


def test_a_missing_bucket_is_not_retried(
    storage: Watched, settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload fails at once."""

    def refuse(**_: object) -> None:
        raise refusal(404, "NoSuchBucket")

    monkeypatch.setattr(storage._client(settings.s3_endpoint_url), "put_object", refuse)
    with pytest.raises(StorageUnavailableError, match="refused put_object"):
        storage.put(key, b"x", PNG)
    assert storage.calls == ["put_object"]
