"""The exporter's HTTP server: `/metrics`, `/status` and `/healthz`, until a signal."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from worker.exporter.pool_metrics import (
    PoolCollector,
    StatusSource,
    StatusUnknownError,
    as_json,
)
from worker.exporter.pool_status import PoolReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

PATHS = ("/metrics", "/status", "/healthz")
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"


def application(source: StatusSource) -> Callable[..., Iterable[bytes]]:
    """The WSGI application over a source."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(source))
    ProcessCollector(registry=registry)
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "only GET is served\n"
        elif path == "/metrics":
            return metrics(environ, start_response)
        elif path == "/status":
            status, kind, body = _status(source)
        elif path == "/healthz":
            status, kind, body = HTTPStatus.OK, _TEXT, "ok\n"
        else:
            status, kind, body = HTTPStatus.NOT_FOUND, _TEXT, f"served are {', '.join(PATHS)}\n"
        data = body.encode()
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", kind), ("Content-Length", str(len(data)))],
        )
        return [data]

    return serve


def _status(source: StatusSource) -> tuple[HTTPStatus, str, str]:
    try:
        found, status = as_json(source.get()), HTTPStatus.OK
    except StatusUnknownError as error:
        # An autoscaler must not take this for an empty queue.
        found, status = {"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE
    return status, _JSON, json.dumps(found, allow_nan=False) + "\n"


class _Handler(WSGIRequestHandler):
    #: Silence after which a client is disconnected, in seconds.
    timeout = 30

    def log_message(self, *_: object) -> None:
        """Log no request: there are some each minute, for ever."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


def listen(settings: Settings, host: str, port: int) -> WSGIServer:
    """A server that listens; raises OSError when it can't."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = _Server6 if family == socket.AF_INET6 else _Server
    source = StatusSource(PoolReader(settings).read)
    return make_server(host, port, application(source), kind, _Handler)


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; raises OSError when it can't listen."""
    stopped = threading.Event()
    with listen(settings, host, port) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        logger.info("serving %s on %s port %d", ", ".join(PATHS), host, port)
        stopped.wait()
        server.shutdown()
