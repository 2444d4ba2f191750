"""Redis with TLS, with certificates of the tests' own authority."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trustme
from redis import Redis
from redis.exceptions import RedisError

from worker import embedded

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority and its folder."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def certificate(self) -> Path:
        """The file with the authority's own certificate."""
        path = self.folder / "ca.pem"
        if not path.exists():
            self.ca.cert_pem.write_to_path(str(path))
        return path

    def files(self, name: str) -> tuple[Path, Path]:
        """A certificate for `name` and its key."""
        issued = self.ca.issue_cert(name)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key


@dataclass
class Front:
    """A TLS proxy before a plain Redis."""

    port: int
    target: int
    #: What clients have sent, once they had accepted the certificate.
    passed_bytes: int = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection in both directions."""
        back, forth = await asyncio.open_connection(embedded.LOOPBACK, self.target)
        await asyncio.gather(self.pump(reader, forth, counts=True), self.pump(back, writer))

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool = False
    ) -> None:
        """Relay one direction until either end closes."""
        with suppress(OSError):
            while data := await reader.read(65536):
                self.passed_bytes += len(data) * counts
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()


@contextmanager
def front(context: ssl.SSLContext, target: int) -> Iterator[Front]:
    """A TLS proxy on a thread, before the Redis on port `target`."""
    made = Front(embedded.free_port(), target)
    started = Future[Callable[[], object]]()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _loop, _context: None)
        server = await asyncio.start_server(made.relay, embedded.LOOPBACK, made.port, ssl=context)
        started.set_result(lambda: loop.call_soon_threadsafe(stop.set))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    stop = started.result(10)
    try:
        yield made
    finally:
        stop()
        thread.join(10)


@contextmanager
def tls_redis(folder: Path, executable: str, authority: Authority) -> Iterator[str]:
    """The URL of a Redis with TLS that requires client certificates."""
    certificate, key = authority.files(embedded.LOOPBACK)
    own, own_key = authority.files("client.test")
    port = embedded.free_port()
    command = [
        executable, "--port", "0", "--tls-port", str(port), "--bind", embedded.LOOPBACK,
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(authority.certificate), "--dir", str(folder),
        "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction",
        *embedded.KEEP_ENVIRONMENT,
    ]  # fmt: skip
    url = (
        f"rediss://{embedded.LOOPBACK}:{port}/0?ssl_cert_reqs=required"
        f"&ssl_ca_certs={authority.certificate}&ssl_certfile={own}&ssl_keyfile={own_key}"
    )

    def answers() -> bool:
        try:
            with Redis.from_url(url) as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    with embedded.running(command, folder / "redis.log", answers):
        yield url
