"""Uploads behind the fence: whoever was overtaken changes no file, however long it slept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.conftest import BUCKET
from worker.errors import StorageUnavailableError
from worker.storage import Storage, SupersededError, _Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

PNG = "image/png"


class Watched(Storage):
    """A storage whose requests are seen, and fail as a test says."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked: list[str] = []
        #: What happens before and after a request, by its name, the first time.
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def _once(self, operation: str, arguments: dict[str, Any], *, read: int = 0) -> Any:
        self.asked.append(operation)
        self.before.pop(operation, lambda: None)()
        reply = super()._once(operation, arguments, read=read)
        self.after.pop(operation, lambda: None)()
        return reply


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """As a worker has them: time enough for another try."""
    return settings.model_copy(update={"s3_retry_s": 60})


@pytest.fixture
def storage(patient: Settings) -> Watched:
    """A worker's own."""
    return Watched(patient)


@pytest.fixture
def other(patient: Settings) -> Storage:
    """Another worker's, of the same bucket."""
    return Storage(patient)


@pytest.fixture
def key(storage: Watched) -> str:
    """Where the picture goes."""
    return storage.key("task", "0.png")


@pytest.fixture
def look(settings: Settings) -> Callable[[str], tuple[bytes, str, Any]]:
    """An object's bytes, ETag and time of change."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)

    def read(key: str) -> tuple[bytes, str, Any]:
        found = client.get_object(Bucket=BUCKET, Key=key)
        return found["Body"].read(), found["ETag"], found["LastModified"]

    return read


def lose_the_answer() -> None:
    raise _Outage("the answer was lost")


@pytest.mark.parametrize("was_there", [False, True])
def test_one_frozen_after_its_look_at_the_fence_changes_nothing(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any], was_there: bool
) -> None:
    """It was the owner when it asked; by the time of its upload another's picture is there."""
    if was_there:
        other.put(key, b"of an attempt before", PNG)
    mine = True

    def sleep() -> bool:
        nonlocal mine
        was_mine, mine = mine, False
        if was_mine:
            other.put(key, b"the new owner's", PNG)
            seen.append(look(key))
        return was_mine

    seen: list[Any] = []
    with pytest.raises(SupersededError):
        storage.put(key, b"the sleeper's", PNG, sleep)
    assert [look(key)] == seen
    assert seen[0][0] == b"the new owner's"
    assert storage.asked == ["head_object", "put_object", "head_object"]


def test_one_that_was_overtaken_sends_nothing(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any]
) -> None:
    """Its look at the fence comes before the upload, and nothing is uploaded after it."""
    other.put(key, b"the new owner's", PNG)
    before = look(key)
    with pytest.raises(SupersededError):
        storage.put(key, b"the former owner's", PNG, lambda: False)
    assert storage.asked == ["head_object"]
    assert look(key) == before


def test_the_owner_writes_over_what_an_attempt_before_left(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any]
) -> None:
    """A picture that differs, as from another device, is replaced by the one of this attempt."""
    other.put(key, b"first", PNG)
    digest = storage.put(key, b"second", PNG, lambda: True)
    assert look(key)[0] == b"second"
    assert digest == hashlib.sha256(b"second").hexdigest()


def test_the_same_bytes_are_not_sent_twice(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any]
) -> None:
    """What an earlier attempt has stored already is left as it is, and its digest is told."""
    other.put(key, b"same", PNG)
    before = look(key)
    assert storage.put(key, b"same", PNG, lambda: True) == hashlib.sha256(b"same").hexdigest()
    assert storage.asked == ["head_object"]
    assert look(key) == before


def test_a_lost_answer_is_no_failure(storage: Watched, key: str, look: Callable[..., Any]) -> None:
    """The upload arrived though its answer did not: the next look finds it, and that is all."""
    storage.after["put_object"] = lose_the_answer
    storage.put(key, b"picture", PNG, lambda: True)
    assert look(key)[0] == b"picture"
    assert storage.asked == ["head_object", "put_object", "head_object"]


def test_a_collision_is_looked_at_afresh(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any]
) -> None:
    """Somebody wrote between look and upload; the owner looks again, and its picture stands."""
    storage.before["put_object"] = lambda: other.put(key, b"a sleeper's", PNG)
    looks: list[bool] = []

    def is_ours() -> bool:
        looks.append(True)
        return True

    storage.put(key, b"the owner's", PNG, is_ours)
    assert look(key)[0] == b"the owner's"
    assert len(looks) == 2
    assert storage.asked == ["head_object", "put_object"] * 2


def test_one_that_was_removed_between_is_stored(
    storage: Watched, other: Storage, key: str, look: Callable[..., Any]
) -> None:
    """A file that was there at the look and is gone at the upload is no reason to give up."""
    other.put(key, b"old", PNG)
    place = {"Bucket": BUCKET, "Key": key}
    storage.before["put_object"] = lambda: other._once("delete_object", place)
    storage.put(key, b"new", PNG, lambda: True)
    assert look(key)[0] == b"new"


def test_an_object_of_somebody_else_is_written_over(
    storage: Watched, settings: Settings, key: str, look: Callable[..., Any]
) -> None:
    """What was put there by hand, without a digest of ours, is not taken for the picture."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
    client.put_object(Bucket=BUCKET, Key=key, Body=b"picture")
    storage.put(key, b"picture", PNG, lambda: True)
    assert storage.asked == ["head_object", "put_object"]
    assert look(key)[0] == b"picture"


def test_a_fence_that_cannot_be_asked_is_no_permission(storage: Watched, key: str) -> None:
    """While Redis is away nothing is uploaded: the error goes to whoever asked."""

    def away() -> bool:
        raise ConnectionError("no Redis")

    with pytest.raises(ConnectionError):
        storage.put(key, b"picture", PNG, away)
    assert "put_object" not in storage.asked


def refusal(status: int, code: str) -> ClientError:
    """What S3 answers, as boto3 raises it."""
    told = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, "operation")


def test_keys_that_may_not_list_may_store(
    storage: Watched,
    settings: Settings,
    key: str,
    look: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3 says 403 of what is not there to whoever may not list the bucket; the upload tells."""

    def refuse(**_: object) -> None:
        raise refusal(403, "403")

    monkeypatch.setattr(storage._client(settings.s3_endpoint_url), "head_object", refuse)
    storage.put(key, b"picture", PNG, lambda: True)
    assert look(key)[0] == b"picture"


def test_one_that_vanished_under_the_upload_is_stored(
    storage: Watched,
    other: Storage,
    settings: Settings,
    key: str,
    look: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AWS says 404 where there is nothing to replace any more; that passes with the next look."""
    other.put(key, b"old", PNG)
    client = storage._client(settings.s3_endpoint_url)
    real = client.put_object

    def vanish(**arguments: Any) -> Any:
        monkeypatch.setattr(client, "put_object", real)
        client.delete_object(Bucket=BUCKET, Key=key)
        raise refusal(404, "NoSuchKey")

    monkeypatch.setattr(client, "put_object", vanish)
    storage.put(key, b"new", PNG, lambda: True)
    assert look(key)[0] == b"new"


def test_a_bucket_that_is_not_there_is_told_at_once(
    storage: Watched, settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will not be there in a minute either."""

    def refuse(**_: object) -> None:
        raise refusal(404, "NoSuchBucket")

    monkeypatch.setattr(storage._client(settings.s3_endpoint_url), "put_object", refuse)
    with pytest.raises(StorageUnavailableError, match="refused put_object"):
        storage.put(key, b"x", PNG)
    assert storage.asked == ["head_object", "put_object"]
