"""A collector that is away: it slows down nothing, delays no shutdown and fills no log."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.traces.attempts import QUEUE, claim, exporting, stage
from tests.traces.collector import collector
from worker.embedded import free_port
from worker.tracing import provider, report_limit, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

#: More spans than the queue of 100 has room for.
ATTEMPTS = 200


@contextmanager
def away(how: str) -> Iterator[str]:
    """The endpoint of a collector that refuses connections, or never answers."""
    if how == "refuses":
        yield f"http://127.0.0.1:{free_port()}"
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow  # `close` waits
@pytest.mark.parametrize("how", ["refuses", "never answers"])
def test_a_collector_that_is_away_costs_nothing(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that is away delays no attempt, delays `close` by 2 s at most, and fills no log.

    One try of the exporter takes 10 s, so 200 attempts that waited for one would take longer.
    """
    monkeypatch.setattr(provider.ReportDigest, "emit", provider.ReportDigest().emit)
    with (
        away(how) as url,
        exporting(
            monkeypatch, url, BSP_MAX_QUEUE_SIZE="100", BSP_MAX_EXPORT_BATCH_SIZE="10"
        ) as written,
    ):
        began_s = time.monotonic()
        for number in range(ATTEMPTS):
            span = written.attempt(claim(f"{number}"), "", QUEUE, {})
            assert span is not None
            span.end([stage("encode"), stage("denoise")], {}, None)
        assert time.monotonic() - began_s < 5
        began_s = time.monotonic()
        written.close()
        assert time.monotonic() - began_s < traces.CLOSE_TIMEOUT_S + 1
    # Of the SDK's own records caplog has those that reach no log, too.
    own = [each for each in caplog.records if each.name.startswith("worker")]
    warnings = [each.getMessage() for each in own if each.levelno > logging.INFO]
    assert 1 <= len(warnings) <= 4, warnings  # full, no answer, given up; and that of `close`
    assert not logging.getLogger("opentelemetry").propagate


def test_reports_are_logged_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many reports of one kind one is logged a minute, with the number that was left out."""
    digest = provider.ReportDigest()
    report = logging.LogRecord("opentelemetry.x", logging.ERROR, "", 1, "refused", None, None)
    for _ in range(1000):
        digest.handle(report)
    assert [each.getMessage() for each in caplog.records] == ["traces: refused"]
    monkeypatch.setattr(report_limit, "REPORT_INTERVAL_S", 0.0)
    digest.handle(report)
    assert caplog.records[-1].getMessage() == "traces: refused (999 reports were left out)"


def test_close_exports_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that wait for the next export are exported by `close`."""
    with collector() as receiver:
        with exporting(monkeypatch, receiver.url, BSP_SCHEDULE_DELAY="3600000") as written:
            span = written.attempt(claim("last"), "", QUEUE, {})
            assert span is not None
            span.end([stage("finish")], {}, None)
            assert receiver.spans == []
        names = {each.name for each in receiver.of("last")}
        assert names == {"wait", "attempt", "finish"}
