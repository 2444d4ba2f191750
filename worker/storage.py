"""Files in S3: uploads that the server checks and a fence guards, inputs, presigned URLs."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import stamina

from api_contracts.errors import FieldError
from worker.errors import BadRequestError, InputNotFoundError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

#: Largest input that is read, in bytes: prompt embeddings of a page of prompts.
MAX_INPUT_BYTES = 64 * 2**20
CONNECT_S, READ_S = 5, 30
#: First and longest pause between tries, in seconds; each is shortened at random.
PAUSE_S = (0.2, 5.0)
#: Most tries, however short the pauses.
MOST_TRIES = 100
#: Answers that may be different a moment later; 409 and 412: somebody wrote the object meanwhile.
_PASSING = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "RequestTimeTooSkewed"})


class SupersededError(Exception):
    """The task is another worker's by now, and so are its files."""


class _Outage(Exception):
    """S3 can't be reached, or says that it is not well."""


class Storage:
    """One bucket. Thread-safe; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        """Credentials come from boto3's own chain."""
        self._settings = settings
        self._lock = threading.Lock()
        self._clients: dict[str | None, Any] = {}

    def key(self, task_id: str, name: str) -> str:
        """The key of a task's file: made of the task id alone, so a second try overwrites."""
        return "/".join(part for part in (self._settings.s3_prefix, task_id, name) if part)

    def put(
        self, key: str, data: bytes, content_type: str, is_ours: Callable[[], bool] = lambda: True
    ) -> str:
        """Store `data` and give its sha256 in hexadecimal; the server checks it on arrival.

        Only what was there before `is_ours` was asked is written over: a worker that was frozen in
        between, for however long, changes nothing. Tries again through outages up to `s3_retry_s`,
        then raises `StorageUnavailableError`; raises `SupersededError` when it is not ours.
        """
        digest = hashlib.sha256(data)
        place = {"Bucket": self._settings.s3_bucket, "Key": key}
        content = {
            "Body": data,
            "ContentType": content_type,
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
            "Metadata": {"sha256": digest.hexdigest()},
        }
        self._persist(lambda: self._replace(place, content, is_ours))
        return digest.hexdigest()

    def _replace(
        self, place: dict[str, Any], content: dict[str, Any], is_ours: Callable[[], bool]
    ) -> None:
        try:
            found = self._once("head_object", place)
        except _NotThere:
            condition = {"IfNoneMatch": "*"}
        else:
            if found["Metadata"].get("sha256") == content["Metadata"]["sha256"]:
                return  # by an earlier attempt, or by a try whose answer was lost
            condition = {"IfMatch": found["ETag"]}
        if not is_ours():
            raise SupersededError
        try:
            self._once("put_object", place | content | condition)
        except _NotThere as error:  # what was to be replaced was removed meanwhile
            raise _Outage(str(error)) from error

    def get_input(self, reference: str, where: str) -> bytes:
        """The object that field `where` of a request refers to, from below the input prefix."""
        prefix = self._settings.s3_input_prefix
        key = f"{prefix}/{reference}" if prefix else reference
        arguments = {"Bucket": self._settings.s3_bucket, "Key": key}
        try:
            data: bytes = self._persist(
                lambda: self._once("get_object", arguments, read=MAX_INPUT_BYTES + 1)
            )
        except _NotThere as error:
            message = f"{where} refers to {reference!r}, which is not in the input prefix"
            raise InputNotFoundError(message, where=where) from error
        if len(data) > MAX_INPUT_BYTES:
            what = "refers to an object that is too large"
            raise BadRequestError(
                FieldError(where=where, what=what, limit=f"<= {MAX_INPUT_BYTES} bytes")
            )
        return data

    def presign(self, key: str) -> str | None:
        """A URL that reads `key` for `presign_s` seconds; None when presigning is off."""
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
        """Write and remove a small object; gives S3's own time, in Unix seconds, where it tells.

        Raises `StorageUnavailableError` with the reason.
        """
        key = self.key(".doctor", owner)
        self.put(key, secrets.token_bytes(8), "text/plain")
        place = {"Bucket": self._settings.s3_bucket, "Key": key}
        answer = self._persist(lambda: self._once("delete_object", place))
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        with suppress(ValueError):
            return parsedate_to_datetime(date).timestamp()
        return None

    def _persist(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  # boto3's own replies
        """What `call` gives, tried again through outages."""
        first_s, longest_s = PAUSE_S
        try:
            for attempt in stamina.retry_context(
                on=_Outage,
                attempts=MOST_TRIES if self._settings.s3_retry_s else 1,
                timeout=self._settings.s3_retry_s or None,
                wait_initial=first_s,
                wait_max=longest_s,
            ):
                with attempt:
                    return call()
        except _Outage as error:
            endpoint = self._settings.s3_endpoint_url or "AWS"
            patience_s = self._settings.s3_retry_s
            long = f" for {patience_s:g} s" if patience_s else ""
            message = f"S3 at {endpoint} did not answer{long} ({error}); submit again when it does"
            raise StorageUnavailableError(message) from error

    def _once(self, operation: str, arguments: dict[str, Any], *, read: int = 0) -> Any:  # noqa: ANN401  # boto3's own replies
        from botocore import exceptions as boto  # noqa: PLC0415  # as boto3 below

        try:
            client = self._client(self._settings.s3_endpoint_url)
            reply = getattr(client, operation)(**arguments)
            return _body(reply, read) if read else reply
        except boto.ClientError as error:
            http = error.response["ResponseMetadata"].get("HTTPStatusCode", 500)
            if http in _PASSING or error.response["Error"].get("Code") in _PASSING_CODES:
                raise _Outage(str(error)) from error
            if _is_missing(http, error.response["Error"].get("Code"), operation):
                raise _NotThere(str(error)) from error
            message = f"S3 refused {operation} on bucket {arguments['Bucket']!r}: {error}"
            raise StorageUnavailableError(message) from error
        except (boto.HTTPClientError, boto.ConnectionError, OSError) as error:
            raise _Outage(str(error)) from error
        except (boto.BotoCoreError, ValueError) as error:  # no credentials, an impossible name
            message = f"S3 can't be asked as it is set up: {error}"
            raise StorageUnavailableError(message) from error

    def _client(self, endpoint_url: str | None) -> Any:  # noqa: ANN401  # boto3 clients have no type
        with self._lock:
            if endpoint_url not in self._clients:
                import boto3.session  # noqa: PLC0415  # a second to import, for the first task
                from botocore.config import Config  # noqa: PLC0415

                # A session of its own: the default one is not safe to share between threads.
                self._clients[endpoint_url] = boto3.session.Session().client(
                    "s3",
                    endpoint_url=endpoint_url,
                    config=Config(
                        signature_version="s3v4",
                        connect_timeout=CONNECT_S,
                        read_timeout=READ_S,
                        retries={"total_max_attempts": 1},
                        s3={"addressing_style": "path" if endpoint_url else "auto"},
                    ),
                )
            return self._clients[endpoint_url]


class _NotThere(Exception):
    """No such object."""


def _is_missing(http: int, code: str | None, operation: str) -> bool:
    """Whether an answer means that there is no such object.

    Whoever may not list the bucket is told 403 instead of 404; if it is the keys that are wrong,
    the upload is refused too. Of the bucket itself only an upload is told by name.
    """
    if operation == "put_object":
        return code == "NoSuchKey"
    return http == 404 or (http == 403 and operation == "head_object")  # noqa: PLR2004  # HTTP's own


def _body(reply: dict[str, Any], most_bytes: int) -> bytes:
    """At most so many bytes of an object, whatever was said of its size before."""
    data: bytes = reply["Body"].read(most_bytes)
    if len(data) < min(most_bytes, reply["ContentLength"]):
        message = f"the connection ended after {len(data)} of {reply['ContentLength']} bytes"
        raise _Outage(message)
    return data
