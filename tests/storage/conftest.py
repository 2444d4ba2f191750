"""Retries without long pauses, and two workers' storages with the same bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.conftest import BUCKET
from tests.storage.watched import Watched
from worker import s3_client
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after milliseconds."""
    monkeypatch.setattr(s3_client, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(s3_client, "MAX_PAUSE_S", 0.05)


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """Settings with time for retries, as a worker has them."""
    return settings.model_copy(update={"s3_retry_s": 60})


@pytest.fixture
def storage(patient: Settings) -> Watched:
    """The storage of the worker under test."""
    return Watched(patient)


@pytest.fixture
def other(patient: Settings) -> Storage:
    """The storage of another worker, with the same bucket."""
    return Storage(patient)


@pytest.fixture
def key(storage: Watched) -> str:
    """The key of the object."""
    return storage.key("task", "0.png")


@pytest.fixture
def read_object(settings: Settings) -> Callable[[str], tuple[bytes, str, Any]]:
    """Return an object's bytes, ETag and time of change."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)

    def read(key: str) -> tuple[bytes, str, Any]:
        found = client.get_object(Bucket=BUCKET, Key=key)
        return found["Body"].read(), found["ETag"], found["LastModified"]

    return read
