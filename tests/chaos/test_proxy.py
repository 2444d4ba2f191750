"""What each mode of the proxy does to open connections and to new ones."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.chaos.proxy import LOOPBACK, Link, Proxy
from tests.chaos.proxy_modes import Disturbance, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How long a silent connection is watched, in seconds.
SILENCE_S = 0.3


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each chunk with itself: its port, and what it received."""
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := _received(connection):
                received.append(data)
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
        yield listener.getsockname()[1], received
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def link(echo: tuple[int, list[bytes]]) -> Iterator[Link]:
    """A link to the echo server."""
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


def test_a_calm_link_forwards(link: Link) -> None:
    """Data is forwarded both ways, and so is the end of a connection."""
    with closing(connect(link)) as connection:
        assert ask(connection, b"hello") == b"hello"
        assert link.connections == 1
    wait_for_none(link)


def test_a_delay_is_for_all_connections(link: Link) -> None:
    """A delay holds each chunk both ways, on old and new connections, until `calm`."""
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
    """A half-open link silences old connections until `calm` resets them; new ones work."""
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


def test_the_server_does_not_see_the_end_of_a_half_open_peer(link: Link) -> None:
    """The server's side of a half-open connection outlives the caller's side, until `calm`."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.HALF_OPEN))
    time.sleep(SILENCE_S)
    assert link.connections == 1
    link.calm(token)
    wait_for_none(link)


def test_deaf_connections_forward_requests_and_no_answers(
    link: Link, echo: tuple[int, list[bytes]]
) -> None:
    """A deaf link forwards requests and no answers; `calm` resets its connections."""
    with closing(connect(link)) as old:
        ask(old, b"before")
        token = link.disturb(Disturbance(Mode.DEAF))
        assert is_silent(old)
        assert echo[1] == [b"before", b"?"]
        link.calm(token)
        assert is_reset(old)


def test_a_reset_is_for_open_connections(link: Link) -> None:
    """A reset ends old connections by RST, and new ones work."""
    with closing(connect(link)) as old:
        ask(old)
        link.reset()
        assert is_reset(old)
    with closing(connect(link)) as new:
        assert ask(new) == b"x"


def test_refusal_is_for_all(link: Link) -> None:
    """A refusing link resets old and new connections until `calm`; later ones work."""
    with closing(connect(link)) as old:
        ask(old)
        token = link.disturb(Disturbance(Mode.REFUSE))
        assert is_reset(old)
    assert is_refused(link)
    link.calm(token)
    with closing(connect(link)) as later:
        assert ask(later) == b"x"


def test_stalling_is_for_all(link: Link) -> None:
    """A stalled link silences old and new connections until `calm` resets them."""
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
    """`calm` with the token of a replaced disturbance has no effect."""
    first = link.disturb(Disturbance(Mode.DELAY, delay_s=5))
    second = link.disturb(Disturbance(Mode.REFUSE))
    link.calm(first)
    assert is_refused(link)
    link.calm(second)
    with closing(connect(link)) as connection:
        assert ask(connection) == b"x"
