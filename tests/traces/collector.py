"""An OTLP receiver in this process: an HTTP server that parses what exporters post."""

from __future__ import annotations

import gzip
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

#: Longest wait for spans, in seconds.
WAIT_S = 120.0
FAILED = 2


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire; ids in hex, times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    links: list[tuple[str, str, dict[str, Any]]]
    #: Status code, `FAILED` or 0, and its description.
    status: tuple[int, str]
    resource: dict[str, Any]

    @property
    def linked(self) -> set[str]:
        """The ids of the spans that it links."""
        return {span_id for _, span_id, _ in self.links}


@dataclass
class Collector:
    """What was received. Thread-safe."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    spans: list[Received] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, body: bytes) -> None:
        """Take a request's body, already inflated."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.bodies.append(body)
            for group in request.resource_spans:
                resource = _attributes(group.resource.attributes)
                self.spans += [
                    _received(span, resource) for scope in group.scope_spans for span in scope.spans
                ]
            self._changed.notify_all()

    def of(self, task_id: str) -> list[Received]:
        """The spans that name a task, and their children, by their start."""
        with self._changed:
            spans = list(self.spans)
        own = [each for each in spans if each.attributes.get("messaging.message.id") == task_id]
        ids = {each.span_id for each in own}
        children = [each for each in spans if each.parent_id in ids and each not in own]
        return sorted(own + children, key=lambda each: each.began_ns)

    def wait(self, task_id: str, ready: Callable[[list[str]], bool]) -> list[Received]:
        """The spans of a task, as soon as `ready` accepts their names."""
        until_s = time.monotonic() + WAIT_S
        while True:
            found = self.of(task_id)
            names = [each.name for each in found]
            if ready(names):
                return found
            assert time.monotonic() < until_s, names
            with self._changed:
                self._changed.wait(0.1)


@contextmanager
def collector() -> Iterator[Collector]:
    """Listen on a port of this machine; `url` is its OTLP endpoint."""
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            made.add(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def _received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=[
            (each.trace_id.hex(), each.span_id.hex(), _attributes(each.attributes))
            for each in span.links
        ],
        status=(span.status.code, span.status.message),
        resource=resource,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in pairs}
