"""Stores that lack a feature: named, and served by a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest

from tests.conftest import BUCKET
from tests.storage.stores import Lacks, store
from worker.doctor.servers import check_s3
from worker.errors import StorageUnavailableError
from worker.s3_client import STORE_IS_FULL
from worker.storage import Storage, SupersededError

if TYPE_CHECKING:
    from worker.config.settings import Settings

#: What a store lacks, the setting that does without it, and a part of the error.
CASES = {
    Lacks.CONDITIONS: ("s3_conditional_writes", "NotImplemented"),
    Lacks.IGNORES_CONDITIONS: ("s3_conditional_writes", "ignores If-None-Match"),
    Lacks.CHECKSUMS: ("s3_checksums", "InvalidArgument"),
}


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


def test_the_endpoint_is_named_wherever_it_comes_from(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one from AWS_ENDPOINT_URL is not called AWS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", settings.s3_endpoint_url or "")
    first, *_ = check_s3(settings.model_copy(update={"s3_endpoint_url": None}))
    assert first.found.startswith(f"{settings.s3_endpoint_url}, bucket ")
