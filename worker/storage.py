"""Objects in S3: checked and fenced uploads, inputs, presigned URLs."""

from __future__ import annotations

import base64
import hashlib
import secrets
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError
from worker.errors import BadRequestError, InputNotFoundError, StorageUnavailableError
from worker.s3_client import NotFoundError, RetryableError, S3Calls, WrittenMeanwhileError

if TYPE_CHECKING:
    from collections.abc import Callable


#: Largest input object, in bytes: enough for pictures, and for embeddings of a page of prompts.
MAX_INPUT_BYTES = 64 * 2**20
#: A store that answers as if it had no condition: a late writer could replace newer pictures.
IGNORES_CONDITIONS = "ignores If-None-Match"


class SupersededError(Exception):
    """Another worker owns the task now; nothing was written."""


class Storage(S3Calls):
    """The S3 bucket of the settings."""

    def key(self, task_id: str, name: str) -> str:
        """Return the key of a task's file: the same in each attempt, so that it is overwritten."""
        return "/".join(part for part in (self._settings.s3_prefix, task_id, name) if part)

    def put(
        self, key: str, data: bytes, content_type: str, is_owner: Callable[[], bool] = lambda: True
    ) -> str:
        """Store `data` and return its sha256 in hexadecimal, which the server verifies.

        The write succeeds only if the object has not changed since before `is_owner` was called, so
        that a worker frozen in between changes nothing. Retries for `s3_retry_s`, then raises
        `StorageUnavailableError`; raises `SupersededError` when `is_owner` returns False.
        """
        digest = hashlib.sha256(data).hexdigest()
        address = {"Bucket": self._settings.s3_bucket, "Key": key}
        content = {
            "Body": data,
            "ContentType": content_type,
            "Metadata": {"sha256": digest},
            **_checksum(data, sha256=self._settings.s3_checksums),
        }
        is_first_try = self._settings.s3_conditional_writes

        def write() -> None:
            nonlocal is_first_try
            if is_first_try:  # most tasks have one attempt: no object is there
                is_first_try = False
                with suppress(WrittenMeanwhileError):
                    self._write(address | content, {"IfNoneMatch": "*"}, is_owner)
                    return
            self._replace(address, content, is_owner)

        self._retry(write)
        return digest

    def _replace(
        self, address: dict[str, Any], content: dict[str, Any], is_owner: Callable[[], bool]
    ) -> None:
        try:
            found = self._call("head_object", address)
        except NotFoundError:
            condition = {"IfNoneMatch": "*"}
        else:
            if found["Metadata"].get("sha256") == content["Metadata"]["sha256"]:
                return  # by an earlier attempt, perhaps one whose answer was lost
            condition = {"IfMatch": found["ETag"]}
        self._write(address | content, condition, is_owner)

    def _write(
        self, content: dict[str, Any], condition: dict[str, Any], is_owner: Callable[[], bool]
    ) -> None:
        if not is_owner():
            raise SupersededError
        if not self._settings.s3_conditional_writes:
            condition = {}
        try:
            self._call("put_object", content | condition)
        except NotFoundError as error:  # the object was removed meanwhile
            raise RetryableError(str(error)) from error

    def get_input(self, reference: str, where: str) -> bytes:
        """Read the object below the input prefix that field `where` of a request refers to.

        Raises `InputNotFoundError`, `BadRequestError` when it is too large, and
        `StorageUnavailableError`.
        """
        prefix = self._settings.s3_input_prefix
        key = f"{prefix}/{reference}" if prefix else reference
        arguments = {"Bucket": self._settings.s3_bucket, "Key": key}
        try:
            data: bytes = self._retry(
                lambda: self._call("get_object", arguments, read_bytes=MAX_INPUT_BYTES + 1)
            )
        except NotFoundError as error:
            message = f"{where} refers to {reference!r}, which is not in the input prefix"
            raise InputNotFoundError(message, where=where) from error
        if len(data) > MAX_INPUT_BYTES:
            what = "refers to an object that is too large"
            raise BadRequestError(
                FieldError(where=where, what=what, limit=f"<= {MAX_INPUT_BYTES} bytes")
            )
        return data

    def presign(self, key: str) -> str | None:
        """Return a URL that reads `key` for `presign_s` seconds; None when presigning is off."""
        if not self._settings.presign_s:
            return None
        endpoint = self._settings.s3_public_endpoint_url or self._settings.s3_endpoint_url
        url: str = self._client(endpoint).generate_presigned_url(
            "get_object",
            Params={"Bucket": self._settings.s3_bucket, "Key": key},
            ExpiresIn=self._settings.presign_s,
        )
        return url

    def check(self, owner: str) -> float | None:
        """Write and remove an object; return the server's time in Unix seconds, None if not sent.

        Raises `StorageUnavailableError` with the reason; what was written is removed all the same.
        """
        key = self.key(".doctor", owner)
        self.put(key, secrets.token_bytes(8), "text/plain")
        address = {"Bucket": self._settings.s3_bucket, "Key": key}
        try:
            if self._settings.s3_conditional_writes:
                self._retry(lambda: self._check_condition(address))
        finally:
            answer = self._retry(lambda: self._call("delete_object", address))
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        with suppress(ValueError):
            return parsedate_to_datetime(date).timestamp()
        return None

    def _check_condition(self, address: dict[str, Any]) -> None:
        """Raise `StorageUnavailableError` if the store overwrites an object despite a condition."""
        content = {"Body": b"", **_checksum(b"", sha256=self._settings.s3_checksums)}
        with suppress(WrittenMeanwhileError):  # 412, as it should be
            self._call("put_object", address | content | {"IfNoneMatch": "*"})
            raise StorageUnavailableError(f"S3 at {self.endpoint} {IGNORES_CONDITIONS}")


def _checksum(data: bytes, *, sha256: bool) -> dict[str, str]:
    """The argument of an upload with which the server verifies it."""
    if sha256:
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}
