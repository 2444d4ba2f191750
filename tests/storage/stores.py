"""An S3 store that is less than the one behind it: a proxy that refuses or ignores headers."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker import embedded

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


class Lacks(Enum):
    """What a store lacks, and how it answers."""

    NOTHING = auto()
    #: 501, as stores do that know the headers and not their meaning.
    CONDITIONS = auto()
    #: 400, as stores do that validate every header.
    CHECKSUMS = auto()
    #: It says that an object is stored whatever the condition, as older stores do.
    IGNORES_CONDITIONS = auto()
    #: 507, as MinIO does when its disks are full.
    ROOM = auto()


PRECONDITION_FAILED = 412
CONDITIONS = ("if-none-match", "if-match")
CHECKSUMS = ("x-amz-checksum-sha256", "x-amz-sdk-checksum-algorithm")


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind = ""
    lacks = Lacks.NOTHING

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        names = {name.lower() for name in headers}
        if self.command == "PUT" and self.lacks is Lacks.CONDITIONS and names & {*CONDITIONS}:
            self._refuse(501, "NotImplemented")
            return
        if self.command == "PUT" and self.lacks is Lacks.CHECKSUMS and names & {*CHECKSUMS}:
            self._refuse(400, "InvalidArgument")
            return
        if self.command == "PUT" and self.lacks is Lacks.ROOM:
            self._refuse(507, "XMinioStorageFull")
            return
        place = urlsplit(self.behind)
        server = http.client.HTTPConnection(place.hostname or "", place.port)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            server.putheader(name, value)
        server.endheaders(body)
        reply = server.getresponse()
        data = reply.read()
        ignored = self.lacks is Lacks.IGNORES_CONDITIONS and reply.status == PRECONDITION_FAILED
        data = b"" if ignored else data
        self.send_response(200 if ignored else reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        server.close()

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_HEAD = do_DELETE = _pass_on  # noqa: N815  # http.server calls them so


@contextmanager
def store(
    behind: str, lacks: Lacks = Lacks.NOTHING, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The URL of such a store in front of another one; with `context` it speaks TLS."""
    handler = type("Handler", (_Proxy,), {"behind": behind, "lacks": lacks})
    with ThreadingHTTPServer((embedded.LOOPBACK, 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http{'s' if context else ''}://{embedded.LOOPBACK}:{server.server_port}"
        server.shutdown()
        thread.join()
