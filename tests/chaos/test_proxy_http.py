"""What the proxy answers for a store, in HTTP."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos.proxy import LOOPBACK, Proxy
from tests.chaos.proxy_modes import Disturbance, Mode


class _Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("status", [500, 503])
def test_an_http_error_is_an_answer_to_the_whole_request(status: int) -> None:
    """A PUT gets the status of a disturbance, however large its body, until `calm`."""
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


def test_a_store_without_conditions_serves_the_rest() -> None:
    """A store without conditions answers 501 to a PUT with a condition, and serves any other."""
    with ThreadingHTTPServer((LOOPBACK, 0), _Store) as server, Proxy() as proxy:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        link = proxy.link(server.server_address[1])
        token = link.disturb(Disturbance(Mode.NO_CONDITIONS, status=501))

        def put(connection: HTTPConnection, **headers: str) -> int:
            connection.request("PUT", "/x", b"x" * 100_000, headers)
            with connection.getresponse() as answer:
                answer.read()
                return answer.status

        with closing(HTTPConnection(LOOPBACK, link.port, timeout=5)) as connection:
            assert put(connection) == 200
            assert put(connection, **{"If-None-Match": "*"}) == 501
            assert put(connection) == 200
            link.calm(token)
            assert put(connection, **{"If-Match": '"etag"'}) == 200
        server.shutdown()
