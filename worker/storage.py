"""Objects in S3: checked and fenced uploads, inputs, presigned URLs."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import stamina

from api_contracts.errors import FieldError
from worker import metrics
from worker.errors import BadRequestError, InputNotFoundError, StorageUnavailableError
from worker.s3_client import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

#: Largest input object, in bytes: enough for the embeddings of a page of prompts.
MAX_INPUT_BYTES = 64 * 2**20
#: First and longest pause between two attempts, in seconds, before jitter.
MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 5.0
#: Most attempts, however short the pauses.
MAX_ATTEMPTS = 100
#: Answers that are retried; 409 and 412 mean that the object was written meanwhile.
_RETRIED_STATUSES = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
_RETRIED_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "RequestTimeTooSkewed"})
#: Of these, what only means that another attempt has written.
_WRITTEN_MEANWHILE = frozenset({409, 412})
#: Answers of stores that don't know a header, or are full.
_NOT_SUPPORTED, _FULL = frozenset({400, 501}), 507
#: What to do about a store without room; part of the error.
STORE_IS_FULL = "the store is full: free space there, or raise its quota"
#: A store that answers as if it had no condition: a late writer could replace newer pictures.
IGNORES_CONDITIONS = "ignores If-None-Match"


class SupersededError(Exception):
    """Another worker owns the task now; nothing was written."""


class _RetryableError(Exception):
    """S3 cannot be reached, or answered that it is unavailable."""


class Storage:
    """The S3 bucket. Thread-safe; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        """Use the bucket of the settings, with credentials from boto3's own chain."""
        self._settings = settings
        self._lock = threading.Lock()
        self._clients: dict[str | None, Any] = {}
        #: Why the last write failed; None when it succeeded. Read from any thread.
        self.trouble: str | None = None

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
        self._retry(lambda: self._replace(address, content, is_owner))
        self.trouble = None
        return digest

    def _replace(
        self, address: dict[str, Any], content: dict[str, Any], is_owner: Callable[[], bool]
    ) -> None:
        try:
            found = self._call("head_object", address)
        except _NotFoundError:
            condition = {"IfNoneMatch": "*"}
        else:
            if found["Metadata"].get("sha256") == content["Metadata"]["sha256"]:
                return  # by an earlier attempt, perhaps one whose answer was lost
            condition = {"IfMatch": found["ETag"]}
        if not is_owner():
            raise SupersededError
        if not self._settings.s3_conditional_writes:
            condition = {}
        try:
            self._call("put_object", address | content | condition)
        except _NotFoundError as error:  # the object was removed meanwhile
            raise _RetryableError(str(error)) from error

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
        except _NotFoundError as error:
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

    @property
    def endpoint(self) -> str:
        """The URL that requests are sent to, also when AWS's variables or files name it."""
        return str(self._client(self._settings.s3_endpoint_url).meta.endpoint_url)

    def check(self, owner: str) -> float | None:
        """Write and remove an object; return the server's time in Unix seconds, None if not sent.

        Raises `StorageUnavailableError` with the reason.
        """
        key = self.key(".doctor", owner)
        self.put(key, secrets.token_bytes(8), "text/plain")
        address = {"Bucket": self._settings.s3_bucket, "Key": key}
        if self._settings.s3_conditional_writes:
            self._check_condition(address)
        answer = self._retry(lambda: self._call("delete_object", address))
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        with suppress(ValueError):
            return parsedate_to_datetime(date).timestamp()
        return None

    def _check_condition(self, address: dict[str, Any]) -> None:
        """Raise `StorageUnavailableError` if the store overwrites an object despite a condition."""
        with suppress(_RetryableError):  # 412, as it should be
            self._call("put_object", address | {"Body": b"", "IfNoneMatch": "*"})
            raise StorageUnavailableError(f"S3 at {self.endpoint} {IGNORES_CONDITIONS}")

    def _retry(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  # boto3's own replies
        """Return the result of `call`, retried for `s3_retry_s` while S3 is unavailable."""
        try:
            for attempt in stamina.retry_context(
                on=_RetryableError,
                attempts=MAX_ATTEMPTS if self._settings.s3_retry_s else 1,
                timeout=self._settings.s3_retry_s or None,
                wait_initial=MIN_PAUSE_S,
                wait_max=MAX_PAUSE_S,
            ):
                with attempt:
                    return call()
        except _RetryableError as error:
            retry_s = self._settings.s3_retry_s
            duration = f" for {retry_s:g} s" if retry_s else ""
            message = (
                f"S3 at {self.endpoint} did not answer{duration} ({error}); submit again later"
            )
            raise StorageUnavailableError(message) from error

    def _call(self, operation: str, arguments: dict[str, Any], *, read_bytes: int = 0) -> Any:  # noqa: ANN401  # boto3's own replies
        from botocore import exceptions as boto  # noqa: PLC0415  # as boto3 below

        try:
            client = self._client(self._settings.s3_endpoint_url)
            reply = getattr(client, operation)(**arguments)
            return _read_body(reply, read_bytes) if read_bytes else reply
        except boto.ClientError as error:
            http = error.response["ResponseMetadata"].get("HTTPStatusCode", 500)
            if http in _RETRIED_STATUSES or error.response["Error"].get("Code") in _RETRIED_CODES:
                if http not in _WRITTEN_MEANWHILE:
                    self._note(str(error))
                raise _RetryableError(str(error)) from error
            if _is_missing(http, error.response["Error"].get("Code"), operation):
                raise _NotFoundError(str(error)) from error
            message = f"S3 refused {operation} on bucket {arguments['Bucket']!r}: {error}"
            if operation == "put_object":
                message += _hint(http, error.response["Error"].get("Code", ""))
                self._note(message)
            raise StorageUnavailableError(message) from error
        except (boto.HTTPClientError, boto.ConnectionError, OSError) as error:
            self._note(str(error))
            raise _RetryableError(str(error)) from error
        except (boto.BotoCoreError, ValueError) as error:  # no credentials, an impossible name
            message = f"the settings of S3 are wrong: {error}"
            raise StorageUnavailableError(message) from error

    def _note(self, trouble: str) -> None:
        metrics.S3_FAILURES.inc()
        self.trouble = trouble

    def _client(self, endpoint_url: str | None) -> Any:  # noqa: ANN401  # boto3 clients have no type
        with self._lock:
            if endpoint_url not in self._clients:
                self._clients[endpoint_url] = connect(
                    endpoint_url, checksums=self._settings.s3_checksums
                )
            return self._clients[endpoint_url]


class _NotFoundError(Exception):
    """No such object."""


def _checksum(data: bytes, *, sha256: bool) -> dict[str, str]:
    """The argument of an upload with which the server verifies it."""
    if sha256:
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}


def _hint(http: int, code: str) -> str:
    """What to do about a refused upload, for the end of the error's message."""
    if http == _FULL or re.search("full|quota|insufficient", code, re.IGNORECASE):
        return f"; {STORE_IS_FULL}"
    if http in _NOT_SUPPORTED:
        return (
            "; for a store without conditional writes or checksums set SAG_S3_CONDITIONAL_WRITES"
            " or SAG_S3_CHECKSUMS to false (`sag-worker doctor` names which)"
        )
    return ""


def _is_missing(http: int, code: str | None, operation: str) -> bool:
    """Whether an answer means that there is no such object.

    A HEAD without the right to list the bucket gets 403 for a missing object, not 404; if the
    credentials are wrong, the upload that follows is refused too. Only an upload's answer
    distinguishes a missing bucket.
    """
    if operation == "put_object":
        return code == "NoSuchKey"
    return http == 404 or (http == 403 and operation == "head_object")  # noqa: PLR2004  # HTTP's own


def _read_body(reply: dict[str, Any], max_bytes: int) -> bytes:
    """Read an object up to `max_bytes`, whatever size was announced."""
    data: bytes = reply["Body"].read(max_bytes)
    if len(data) < min(max_bytes, reply["ContentLength"]):
        message = f"the connection ended after {len(data)} of {reply['ContentLength']} bytes"
        raise _RetryableError(message)
    return data
