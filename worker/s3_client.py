"""Calls of S3: a boto3 client, retries while S3 is away, and errors in words."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any

import stamina

from worker import metrics
from worker.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

#: Socket timeouts of a request, in seconds.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
#: First and longest pause between two attempts, in seconds, before jitter.
MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 5.0
#: Most attempts, however short the pauses.
MAX_ATTEMPTS = 100
#: Answers that are retried.
_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_RETRIED_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "RequestTimeTooSkewed"})
#: Answers that only mean that another attempt has written; retried, too.
_WRITTEN_MEANWHILE = frozenset({409, 412})
#: What stores answer that don't know a header, with the codes of the first; or are full.
_BAD_REQUEST, _NOT_IMPLEMENTED, _FULL = 400, 501, 507
_NOT_SUPPORTED_CODES = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest"})
#: What to do about a store without room; part of the error.
STORE_IS_FULL = "the store is full: free space there, or raise its quota"


class RetryableError(Exception):
    """S3 cannot be reached, or answered that it is unavailable."""


class WrittenMeanwhileError(RetryableError):
    """The condition of an upload does not hold: another attempt has written the object."""


class NotFoundError(Exception):
    """No such object."""


class S3Calls:
    """Calls of the settings' endpoint. Thread-safe; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        """Use credentials from boto3's own chain."""
        self._settings = settings
        self._lock = threading.Lock()
        self._clients: dict[str | None, Any] = {}
        #: Why the last call failed; None if it did not. An object that is missing or was written
        #: meanwhile is no failure. An upload, repeated while the store is unavailable, is a PUT;
        #: where an object is there, a HEAD and another PUT follow. Read from any thread.
        self.trouble: str | None = None

    @property
    def endpoint(self) -> str:
        """The URL that requests are sent to, also when AWS's variables or files name it."""
        return str(self._client(self._settings.s3_endpoint_url).meta.endpoint_url)

    def _retry(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  # boto3's own replies
        """Return the result of `call`, retried for `s3_retry_s` while S3 is unavailable."""
        try:
            for attempt in stamina.retry_context(
                on=RetryableError,
                attempts=MAX_ATTEMPTS if self._settings.s3_retry_s else 1,
                timeout=self._settings.s3_retry_s or None,
                wait_initial=MIN_PAUSE_S,
                wait_max=MAX_PAUSE_S,
            ):
                if attempt.num > 1:
                    metrics.S3_RETRIES.inc()
                with attempt:
                    return call()
        except RetryableError as error:
            retry_s = self._settings.s3_retry_s
            duration = f" for {retry_s:g} s" if retry_s else ""
            message = (
                f"S3 at {self.endpoint} did not answer{duration} ({error}); submit again later"
            )
            raise StorageUnavailableError(message) from error

    def _call(self, operation: str, arguments: dict[str, Any], *, read_bytes: int = 0) -> Any:  # noqa: ANN401  # boto3's own replies
        """One try of an operation of boto3; with `read_bytes` up to so many of the object.

        Raises `NotFoundError`, `RetryableError` or `StorageUnavailableError`, and notes `trouble`.
        """
        try:
            reply = self._ask(operation, arguments, read_bytes)
        except (NotFoundError, WrittenMeanwhileError):
            self.trouble = None
            raise
        except (RetryableError, StorageUnavailableError) as error:
            metrics.S3_FAILURES.inc()
            self.trouble = str(error)
            raise
        self.trouble = None
        return reply

    def _ask(self, operation: str, arguments: dict[str, Any], read_bytes: int) -> Any:  # noqa: ANN401  # boto3's own replies
        from botocore import exceptions as boto  # noqa: PLC0415  # as boto3 below

        try:
            client = self._client(self._settings.s3_endpoint_url)
            reply = getattr(client, operation)(**arguments)
            return _read_body(reply, read_bytes) if read_bytes else reply
        except boto.ClientError as error:
            http = error.response["ResponseMetadata"].get("HTTPStatusCode", 500)
            code = error.response["Error"].get("Code", "")
            if http in _WRITTEN_MEANWHILE:
                raise WrittenMeanwhileError(str(error)) from error
            if http in _RETRIED_STATUSES or code in _RETRIED_CODES:
                raise RetryableError(str(error)) from error
            if _is_missing(http, code, operation):
                raise NotFoundError(str(error)) from error
            message = f"S3 refused {operation} on bucket {arguments['Bucket']!r}: {error}"
            if operation == "put_object":
                message += _hint(http, code)
            raise StorageUnavailableError(message) from error
        except (boto.HTTPClientError, boto.ConnectionError, OSError) as error:
            raise RetryableError(str(error)) from error
        except (boto.BotoCoreError, ValueError) as error:  # no credentials, an impossible name
            message = f"the settings of S3 are wrong: {error}"
            raise StorageUnavailableError(message) from error

    def _client(self, endpoint_url: str | None) -> Any:  # noqa: ANN401  # boto3 clients have no type
        with self._lock:
            if endpoint_url not in self._clients:
                self._clients[endpoint_url] = connect(
                    endpoint_url, checksums=self._settings.s3_checksums
                )
            return self._clients[endpoint_url]


def connect(endpoint_url: str | None, *, checksums: bool) -> Any:  # noqa: ANN401  # boto3 clients have no type
    """A client; `endpoint_url` None leaves the endpoint to AWS's own variables and files.

    Without `checksums` none is sent but what the caller adds.
    """
    import boto3.session  # noqa: PLC0415  # takes a second to import
    import botocore.session  # noqa: PLC0415  # as above
    from botocore.config import Config  # noqa: PLC0415  # as above

    core = botocore.session.get_session()  # a new one: boto3's default is not thread-safe
    return boto3.session.Session(botocore_session=core).client(
        "s3",
        endpoint_url=endpoint_url,
        verify=_authorities(core.get_config_variable("ca_bundle"), endpoint_url),
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_supported" if checksums else "when_required",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path" if endpoint_url else "auto"},
        ),
    )


def _authorities(ca_bundle: str | None, endpoint_url: str | None) -> str | None:
    """The file of trusted authorities; None for those that boto3 brings along.

    `ca_bundle` is AWS_CA_BUNDLE or that of AWS's files; REQUESTS_CA_BUNDLE follows, as in boto3.
    OpenSSL's variable, which may name a private authority alone, is for private stores only.
    """
    named = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE")
    return named or (os.environ.get("SSL_CERT_FILE") if endpoint_url else None) or None


def _hint(http: int, code: str) -> str:
    """What to do about a refused upload, for the end of the error's message."""
    if http == _FULL or re.search("full|quota|insufficient", code, re.IGNORECASE):
        return f"; {STORE_IS_FULL}"
    if http == _NOT_IMPLEMENTED or (http == _BAD_REQUEST and code in _NOT_SUPPORTED_CODES):
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
        raise RetryableError(message)
    return data
