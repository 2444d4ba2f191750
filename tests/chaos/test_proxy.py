"""What each mode of the proxy does to connections that are there and to new ones."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.chaos.disturbance import Disturbance, Mode
from tests.chaos.proxy import LOOPBACK, Link, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As long as silence is waited for, in seconds.
SILENCE_S = 0.3


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each piece with itself; its port and what reached it."""
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := _received(connection):
                heard.append(data)
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def link(echo: tuple[int, list[bytes]]) -> Iterator[Link]:
    """A link to the echo."""
    with Proxy() as proxy:
        yield proxy.link(echo[0])


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(100)
    except OSError:
        return b""


def connect(link: Link) -> socket.socket:
    return socket.create_connection((LOOPBACK, link.port), timeout=5)


def ask(connection: socket.socket, data: bytes = b"x") -> bytes:
    connection.sendall(data)
    return connection.recv(100)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE_S)
    try:
        connection.sendall(b"?")
        return not connection.recv(100)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"?")
        return connection.recv(100) == b"never"
    except OSError:
        return True


def wait_for_none(link: Link) -> None:
    """Return when the link has no connection; fail after five seconds."""
    deadline_s = time.monotonic() + 5
    while link.connections:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_refused(link: Link) -> bool:
    """Whether a new connection is reset, be it while it is made."""
    try:
        with closing(connect(link)) as connection:
            return is_reset(connection)
    except ConnectionError:
        return True


def test_a_calm_link_carries(link: Link) -> None:
    """What goes in comes out, and an end on one side is one on the other."""
    with closing(connect(link)) as connection:
        assert ask(connection, b"hello") == b"hello"
        assert link.connections == 1
    wait_for_none(link)


def test_a_delay_is_for_all_until_it_is_calm(link: Link) -> None:
    """Each piece waits both ways, on old and new connections; then no longer."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.DELAY, delay_s=0.25))
        with closing(connect(link)) as new:
            for connection in (old, new):
                began_s = time.monotonic()
                assert ask(connection) == b"x"
                assert time.monotonic() - began_s >= 0.5
            link.calm(token)
            began_s = time.monotonic()
            assert ask(new) == b"x"
            assert time.monotonic() - began_s < 0.45


def test_half_open_connections_swallow_and_stay(link: Link, echo: tuple[int, list[bytes]]) -> None:
    """An old connection is silent both ways and open; a new one works; calm resets the old."""
    with closing(connect(link)) as old:
        ask(old, b"before")
        token = link.disturb(Disturbance(Mode.HALF_OPEN))
        assert is_silent(old)
        assert echo[1] == [b"before"]
        with closing(connect(link)) as new:
            assert ask(new) == b"x"
            link.calm(token)
            assert is_reset(old)
            assert ask(new) == b"x"


def test_the_server_never_hears_that_a_half_open_peer_left(link: Link) -> None:
    """A caller that goes away leaves the server's side as it is, until it is calm."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.HALF_OPEN))
    time.sleep(SILENCE_S)
    assert link.connections == 1
    link.calm(token)
    wait_for_none(link)


def test_deaf_connections_bring_requests_and_no_answers(
    link: Link, echo: tuple[int, list[bytes]]
) -> None:
    """What is asked is done, and the answer never comes."""
    with closing(connect(link)) as old:
        ask(old, b"before")
        token = link.disturb(Disturbance(Mode.DEAF))
        assert is_silent(old)
        assert echo[1] == [b"before", b"?"]
        link.calm(token)
        assert is_reset(old)


def test_a_reset_is_for_those_that_are_there(link: Link) -> None:
    """Old connections end by RST, new ones work."""
    with closing(connect(link)) as old:
        ask(old)
        link.reset()
        assert is_reset(old)
    with closing(connect(link)) as new:
        assert ask(new) == b"x"


def test_refusal_is_for_all(link: Link) -> None:
    """Old and new connections are reset; after it, new ones work."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.REFUSE))
        assert is_reset(old)
    assert is_refused(link)
    link.calm(token)
    with closing(connect(link)) as later:
        assert ask(later) == b"x"


def test_stalling_is_for_all(link: Link) -> None:
    """Old and new connections are silent and stay; calm resets them; after it, new ones work."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.STALL))
        with closing(connect(link)) as new:
            assert is_silent(old)
            assert is_silent(new)
            link.calm(token)
            assert is_reset(old)
            assert is_reset(new)
    with closing(connect(link)) as later:
        assert ask(later) == b"x"


def test_a_later_disturbance_outlives_the_end_of_the_first(link: Link) -> None:
    """Calming what was replaced changes nothing."""
    first = link.disturb(Disturbance(Mode.DELAY, delay_s=5))
    second = link.disturb(Disturbance(Mode.REFUSE))
    link.calm(first)
    assert is_refused(link)
    link.calm(second)
    with closing(connect(link)) as connection:
        assert ask(connection) == b"x"


class _Store(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("status", [500, 503])
def test_an_http_error_is_an_answer_to_the_whole_request(status: int) -> None:
    """A PUT gets the status, however large its body; after it, a PUT gets through."""
    with ThreadingHTTPServer((LOOPBACK, 0), _Store) as server, Proxy() as proxy:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        link = proxy.link(server.server_address[1])
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{link.port}/x", data=b"x" * 1_000_000, method="PUT"
        )
        token = link.disturb(Disturbance(Mode.ERROR, status=status))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code == status
        refused.value.close()
        link.calm(token)
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
        server.shutdown()
