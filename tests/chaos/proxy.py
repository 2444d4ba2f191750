"""A TCP proxy whose links a fault schedule disturbs; of HTTP it knows only the error answer."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from concurrent.futures import Future
from itertools import count
from typing import TYPE_CHECKING, Self, TypeVar

from tests.chaos.proxy_modes import Disturbance, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
#: HTTP's status for a header or method that a server does not know.
NOT_IMPLEMENTED = 501
_CHUNK_BYTES = 65_536
#: Longest head of an HTTP request that is answered with an error.
_HEAD_BYTES = 65_536
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_EXPECT = re.compile(rb"expect: *100-continue", re.IGNORECASE)
_CONDITIONAL = re.compile(rb"PUT .*\r\nif-(none-)?match:", re.IGNORECASE | re.DOTALL)
_CALM = Disturbance()


class _Pipe:
    """A client's connection and the one to the server."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.near, self.far = near, near
        #: Set when the disturbance is this connection's own.
        self.token: int | None = None
        self.own: Disturbance | None = None

    def reset(self) -> None:
        """End both sides by RST, as a peer that does not know the connection does."""
        for writer in {self.near, self.far}:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Link:
    """A port that leads to a server. Thread-safe; made by `Proxy.link`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server_port: int) -> None:
        self._loop, self._server_port = loop, server_port
        self._now, self._token = _CALM, 0
        self._tokens = count(1)
        self._pipes: set[_Pipe] = set()
        self.port = 0

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._pipes)

    def disturb(self, disturbance: Disturbance) -> int:
        """Start a disturbance, which a later one replaces; gives the token to end it."""
        return _on(self._loop, lambda: self._disturb(disturbance))

    def calm(self, token: int) -> None:
        """End a disturbance: connections that lost data are reset, new ones pass."""
        _on(self._loop, lambda: self._calm(token))

    def reset(self) -> None:
        """Reset the open connections."""
        _on(self._loop, self._reset_all)

    def lead_to(self, server_port: int) -> None:
        """Lead to another server from now on, and reset the open connections."""

        def move() -> None:
            self._server_port = server_port
            self._reset_all()

        _on(self._loop, move)

    async def listen(self) -> None:
        """Open the port."""
        server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=_HEAD_BYTES)
        self.port = server.sockets[0].getsockname()[1]

    def _disturb(self, disturbance: Disturbance) -> int:
        token = next(self._tokens)
        if disturbance.mode.is_for_open_connections:
            for pipe in self._pipes:
                if pipe.own is None:
                    pipe.token, pipe.own = token, disturbance
            return token
        self._now, self._token = disturbance, token
        if disturbance.mode.resets:
            self._reset_all()
        return token

    def _calm(self, token: int) -> None:
        stalled = self._token == token and self._now.mode is Mode.STALL
        if self._token == token:
            self._now, self._token = _CALM, 0
        for pipe in list(self._pipes):
            if pipe.token == token or (stalled and pipe.own is None):
                pipe.reset()

    def _reset_all(self) -> None:
        for pipe in list(self._pipes):
            pipe.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = _Pipe(writer)
        self._pipes.add(pipe)
        try:
            if self._now.mode is Mode.ERROR:
                await _answer(reader, writer, self._now.status)
            elif self._now.mode is not Mode.REFUSE:
                await self._join(pipe, reader)
        except (OSError, EOFError, ValueError):  # either side has closed, or sent no HTTP
            pass
        except asyncio.CancelledError:  # by `_end_tasks`; asyncio would print it
            pass
        finally:
            self._pipes.discard(pipe)
            pipe.reset()

    async def _join(self, pipe: _Pipe, near: asyncio.StreamReader) -> None:
        """Forward both ways until one side ends; a swallowed end is not forwarded."""
        far, pipe.far = await asyncio.open_connection(LOOPBACK, self._server_port)
        ways = [
            asyncio.ensure_future(self._forward(pipe, near, pipe.far, answers=False)),
            asyncio.ensure_future(self._forward(pipe, far, pipe.near, answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self._swallows(pipe, answers=True):
                await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(
        self,
        pipe: _Pipe,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if not self._swallows(pipe, answers=answers):
                await asyncio.sleep(self._now.delay_s)
            # Checked again: the disturbance may have started during the delay.
            if self._swallows(pipe, answers=answers):
                continue
            if self._now.mode is Mode.NO_CONDITIONS and not answers and _CONDITIONAL.match(data):
                await _send_error(pipe.near, self._now.status)
                await reader.read()  # as in `_answer`
                return
            writer.write(data)
            await writer.drain()

    def _swallows(self, pipe: _Pipe, *, answers: bool) -> bool:
        return (pipe.own or self._now).mode.swallows(answers=answers)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int) -> None:
    """Read an HTTP request and answer it with `status` and an error as S3 writes it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length and not _EXPECT.search(head):
        await reader.readexactly(int(length[1]))
    await _send_error(writer, status)
    await reader.read()  # until the client has read the answer: a reset would discard it


async def _send_error(writer: asyncio.StreamWriter, status: int) -> None:
    """An error as S3 writes it, and the end of what is sent."""
    code = b"NotImplemented" if status == NOT_IMPLEMENTED else b"InternalError"
    body = b"<Error><Code>%b</Code><Message>chaos</Message></Error>" % code
    writer.write(
        b"HTTP/1.1 %d Chaos\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b" % (status, len(body), body)
    )
    await writer.drain()
    writer.write_eof()


class Proxy:
    """The thread that forwards for all links."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def link(self, server_port: int) -> Link:
        """A new port that leads to `server_port` of this machine."""
        link = Link(self._loop, server_port)
        asyncio.run_coroutine_threadsafe(link.listen(), self._loop).result()
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> T:
    """Call `call` on the loop's thread, and give what it gives."""
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # raised again on the caller's thread
            future.set_exception(error)

    loop.call_soon_threadsafe(answer)
    return future.result(10)
