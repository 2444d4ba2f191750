"""A small S3 server in memory, for machines without SeaweedFS. Standard library only.

It has what the worker uses: buckets, objects with their type and metadata, conditions, SHA-256
checksums, lists. It checks no signature and is for the loopback interface of one benchmark alone.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
META = "x-amz-meta-"
CHECKSUM = "x-amz-checksum-sha256"


@dataclass(frozen=True)
class Stored:
    """An object."""

    data: bytes
    content_type: str
    metadata: Mapping[str, str]
    written: datetime

    @property
    def etag(self) -> str:
        """As S3's: the MD5 in quotes."""
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


class Refused(Exception):
    """An error of S3's."""

    def __init__(self, status: HTTPStatus, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Store:
    """Buckets and their objects. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[str, dict[str, Stored]] = {}

    def create(self, bucket: str) -> None:
        """Make a bucket; raises `Refused` where it is there."""
        with self._lock:
            if bucket in self._buckets:
                raise Refused(HTTPStatus.CONFLICT, "BucketAlreadyOwnedByYou")
            self._buckets[bucket] = {}

    def put(self, bucket: str, key: str, new: Stored, headers: Mapping[str, str]) -> None:
        """Write an object if the request's condition holds."""
        with self._lock:
            objects = self._objects(bucket)
            there = objects.get(key)
            none_match, match = headers.get("if-none-match"), headers.get("if-match")
            if match is not None and there is None:
                raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey")
            if there is not None and (none_match == "*" or match not in (None, there.etag)):
                raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
            objects[key] = new

    def get(self, bucket: str, key: str) -> Stored:
        """Read an object."""
        with self._lock:
            if (there := self._objects(bucket).get(key)) is None:
                raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey")
            return there

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is as good."""
        with self._lock:
            self._objects(bucket).pop(key, None)

    def listed(self, bucket: str, prefix: str) -> dict[str, Stored]:
        """The objects whose keys begin so, in order."""
        with self._lock:
            return {k: o for k, o in sorted(self._objects(bucket).items()) if k.startswith(prefix)}

    def _objects(self, bucket: str) -> dict[str, Stored]:
        if bucket not in self._buckets:
            raise Refused(HTTPStatus.NOT_FOUND, "NoSuchBucket")
        return self._buckets[bucket]


class Handler(BaseHTTPRequestHandler):
    """One connection; `store` is set by `serve`."""

    protocol_version = "HTTP/1.1"
    #: Else a small answer's body waits 40 ms for the acknowledgement of its head.
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        place = urlsplit(self.path)
        bucket, _, key = unquote(place.path).removeprefix("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(place.query).items()}
        try:
            getattr(self, f"_{self.command.lower()}")(bucket, key, body, query)
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>"
            self._send(refused.status, text.encode(), {"Content-Type": "application/xml"})

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer  # noqa: N815  # http.server calls them so

    def _put(self, bucket: str, key: str, body: bytes, _query: Mapping[str, str]) -> None:
        if not key:
            self.store.create(bucket)
            self._send(HTTPStatus.OK, b"", {})
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        _check(body, headers)
        metadata = {name: value for name, value in headers.items() if name.startswith(META)}
        content_type = headers.get("content-type", "binary/octet-stream")
        new = Stored(body, content_type, metadata, datetime.now(UTC))
        self.store.put(bucket, key, new, headers)
        self._send(HTTPStatus.OK, b"", {"ETag": new.etag})

    def _get(self, bucket: str, key: str, _body: bytes, query: Mapping[str, str]) -> None:
        if not key:
            found = self.store.listed(bucket, query.get("prefix", ""))
            self._send(HTTPStatus.OK, _list(bucket, found), {"Content-Type": "application/xml"})
            return
        there = self.store.get(bucket, key)
        headers = {
            "Content-Type": there.content_type,
            "ETag": there.etag,
            "Last-Modified": format_datetime(there.written, usegmt=True),
            **there.metadata,
        }
        self._send(HTTPStatus.OK, there.data, headers)

    _head = _get

    def _delete(self, bucket: str, key: str, _body: bytes, _query: Mapping[str, str]) -> None:
        self.store.delete(bucket, key)
        self._send(HTTPStatus.NO_CONTENT, b"", {})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _check(body: bytes, headers: Mapping[str, str]) -> None:
    """Refuse a body that does not match its checksum."""
    if (sha256 := headers.get(CHECKSUM)) is not None:
        found = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if found != sha256:
            raise Refused(HTTPStatus.BAD_REQUEST, "XAmzContentChecksumMismatch")
    if (md5 := headers.get("content-md5")) is not None:
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        if base64.b64encode(digest).decode() != md5:
            raise Refused(HTTPStatus.BAD_REQUEST, "BadDigest")


def _list(bucket: str, found: Mapping[str, Stored]) -> bytes:
    """The answer to ListObjectsV2: everything in one page."""
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(each.data)}</Size>"
        f"<ETag>{each.etag}</ETag><LastModified>{each.written:%FT%TZ}</LastModified></Contents>"
        for key, each in found.items()
    )
    head = f"<Name>{bucket}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
    return f"<ListBucketResult>{head}{contents}</ListBucketResult>".encode()


def server(port: int = 0) -> ThreadingHTTPServer:
    """A server of an empty store on a port of the loopback interface; 0 is a free one."""
    handler = type("Handler", (Handler,), {"store": Store()})
    return ThreadingHTTPServer((LOOPBACK, port), handler)


if __name__ == "__main__":
    server(int(sys.argv[1])).serve_forever()
