"""Fenced uploads: a worker that lost its task changes no object, however long it was frozen."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.conftest import BUCKET
from tests.storage.watched import PNG, Watched
from worker.s3_client import RetryableError
from worker.storage import Storage, SupersededError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings


def lose_the_answer() -> None:
    raise RetryableError("the answer was lost")


@pytest.mark.parametrize(
    ("was_there", "frozen_at", "calls"),
    [
        (False, 1, ["put_object", "head_object"]),
        (True, 1, ["put_object", "head_object"]),
        (True, 2, ["put_object", "head_object", "put_object", "head_object"]),
    ],
)
def test_a_worker_frozen_after_its_check_changes_nothing(  # noqa: PLR0913, PLR0917  # fixtures
    storage: Watched,
    other: Storage,
    key: str,
    read_object: Callable[..., Any],
    was_there: bool,
    frozen_at: int,
    calls: list[str],
) -> None:
    """It was the owner when it checked; before its upload another worker stored its object."""
    if was_there:
        other.put(key, b"an earlier attempt's", PNG)
    checks = 0

    def check_and_freeze() -> bool:
        nonlocal checks
        checks += 1
        if checks == frozen_at:
            other.put(key, b"the new owner's", PNG)
            seen.append(read_object(key))
        return checks <= frozen_at

    seen: list[Any] = []
    with pytest.raises(SupersededError):
        storage.put(key, b"the frozen worker's", PNG, check_and_freeze)
    assert [read_object(key)] == seen
    assert seen[0][0] == b"the new owner's"
    assert storage.calls == calls


def test_a_former_owner_uploads_nothing(
    storage: Watched, other: Storage, key: str, read_object: Callable[..., Any]
) -> None:
    """The owner is checked before the upload, and nothing is sent when it is another."""
    other.put(key, b"the new owner's", PNG)
    before = read_object(key)
    with pytest.raises(SupersededError):
        storage.put(key, b"the former owner's", PNG, lambda: False)
    assert storage.calls == []
    assert read_object(key) == before


def test_the_owner_replaces_the_object_of_an_earlier_attempt(
    storage: Watched, other: Storage, key: str, read_object: Callable[..., Any]
) -> None:
    """An object that differs, as from another device, is replaced."""
    other.put(key, b"first", PNG)
    digest = storage.put(key, b"second", PNG, lambda: True)
    assert read_object(key)[0] == b"second"
    assert digest == hashlib.sha256(b"second").hexdigest()


def test_a_new_object_takes_one_request(storage: Watched, key: str) -> None:
    """Where no earlier attempt stored it, which the condition of the upload says."""
    storage.put(key, b"image", PNG, lambda: True)
    assert storage.calls == ["put_object"]


def test_the_same_bytes_are_kept(
    storage: Watched, other: Storage, key: str, read_object: Callable[..., Any]
) -> None:
    """An object that an earlier attempt stored is kept, and its digest returned."""
    other.put(key, b"same", PNG)
    before = read_object(key)
    assert storage.put(key, b"same", PNG, lambda: True) == hashlib.sha256(b"same").hexdigest()
    assert storage.calls == ["put_object", "head_object"]
    assert read_object(key) == before


def test_a_lost_answer_is_no_failure(
    storage: Watched, key: str, read_object: Callable[..., Any]
) -> None:
    """The retry after a lost answer finds the object and uploads nothing."""
    storage.after["put_object"] = lose_the_answer
    storage.put(key, b"image", PNG, lambda: True)
    assert read_object(key)[0] == b"image"
    assert storage.calls == ["put_object", "head_object"]


def test_a_concurrent_write_is_retried(
    storage: Watched, other: Storage, key: str, read_object: Callable[..., Any]
) -> None:
    """After a write between check and upload the owner checks again, and its object is stored."""
    storage.before["put_object"] = lambda: other.put(key, b"a frozen worker's", PNG)
    checks: list[bool] = []

    def is_owner() -> bool:
        checks.append(True)
        return True

    storage.put(key, b"the owner's", PNG, is_owner)
    assert read_object(key)[0] == b"the owner's"
    assert len(checks) == 2
    assert storage.calls == ["put_object", "head_object", "put_object"]


def test_an_object_removed_before_the_upload_is_stored(
    storage: Watched, other: Storage, key: str, read_object: Callable[..., Any]
) -> None:
    """A removal between check and upload is retried."""
    other.put(key, b"old", PNG)
    address = {"Bucket": BUCKET, "Key": key}
    storage.before["put_object"] = lambda: other._call("delete_object", address)
    storage.put(key, b"new", PNG, lambda: True)
    assert read_object(key)[0] == b"new"


def test_a_foreign_object_is_replaced(
    storage: Watched, settings: Settings, key: str, read_object: Callable[..., Any]
) -> None:
    """An object without our digest is not taken for the upload, whatever its bytes."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    client.put_object(Bucket=BUCKET, Key=key, Body=b"image")
    storage.put(key, b"image", PNG, lambda: True)
    assert storage.calls == ["put_object", "head_object", "put_object"]
    assert read_object(key)[0] == b"image"


def test_without_an_answer_of_the_fence_nothing_is_uploaded(storage: Watched, key: str) -> None:
    """While Redis is unreachable the error is raised to the caller."""

    def unreachable() -> bool:
        raise ConnectionError("no Redis")

    with pytest.raises(ConnectionError):
        storage.put(key, b"image", PNG, unreachable)
    assert "put_object" not in storage.calls
