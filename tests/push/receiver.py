"""A webhook receiver on this machine: records messages, answers with given statuses."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

#: Longest wait for a message, in seconds.
COME_S = 60.0
#: How often the server looks whether it was shut down, in seconds.
POLL_S = 0.01


@dataclass(frozen=True)
class Message:
    """One POST request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """The received messages, oldest first."""

    port: int
    #: Statuses of the next answers; 200 when there are none.
    answers: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self, count: int) -> list[Message]:
        """The messages, once there are `count`."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.messages) >= count, COME_S)
            return list(self.messages)


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's own name
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with here.came:
                status = here.answers.pop(0) if here.answers else 200
                here.messages.append(Message(self.path, dict(self.headers), body))
                here.came.notify_all()
            self.send_response(status)
            self.send_header("Location", f"{here.origin}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    here = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
