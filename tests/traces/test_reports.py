"""What the SDK reports, as this worker logs it: each fault once, with its variable, no secret."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from tests.traces.attempts import exporting
from worker.tracing import provider, report_limit

if TYPE_CHECKING:
    from tests.traces.collector import Collector

SECRET = "geheim"


@pytest.fixture(autouse=True)
def _new_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest that has logged nothing yet, and does not stay."""
    reports = logging.getLogger("opentelemetry")
    monkeypatch.setattr(reports, "handlers", [])
    monkeypatch.setattr(reports, "propagate", True)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    own = [each for each in caplog.records if each.name.startswith("worker")]
    return [each.getMessage() for each in own if each.levelno == logging.WARNING]


@pytest.mark.parametrize("name", ["EXPORTER_OTLP_HEADERS", "EXPORTER_OTLP_TRACES_HEADERS"])
def test_a_malformed_header_is_not_logged(
    name: str, receiver: Collector, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A malformed header is logged by its variable's name, without the token that it holds."""
    header = f"Authorization: Bearer {SECRET}"
    with exporting(monkeypatch, receiver.url, **{name: header}):
        pass
    assert SECRET not in caplog.text
    (line,) = lines(caplog)
    assert f"OTEL_{name}" in line


def test_several_wrong_variables_are_all_named(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reports within milliseconds are all logged, each with what was wrong."""
    wrong = {"BSP_MAX_QUEUE_SIZE": "many", "BSP_SCHEDULE_DELAY": "soon", "TRACES_SAMPLER": "odd"}
    with exporting(monkeypatch, receiver.url, **wrong):
        pass
    said = lines(caplog)
    assert len(said) == len(wrong), said
    for name, value in wrong.items():
        (line,) = [each for each in said if value in each]
        assert name in line or "sampler" in line, line  # of which the SDK gives the value alone


def report(message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Report as the SDK does, to a digest."""
    made = logging.LogRecord(
        "opentelemetry.x", logging.ERROR, "", 1, message, arguments,
        None if error is None else (type(error), error, None),
    )  # fmt: skip
    provider.ReportDigest().handle(made)


def test_a_url_is_logged_without_its_login(caplog: pytest.LogCaptureFixture) -> None:
    """User and password of a collector's URL are in no line, also not in an exception's text."""
    url = f"http://user:{SECRET}@collector:4318/v1/traces"
    report("no answer of %s", url, error=ValueError(f"{url} is away"))
    shown = "http://collector:4318/v1/traces"
    assert lines(caplog) == [f"traces: no answer of {shown}: ValueError: {shown} is away"]


def test_a_report_that_can_not_be_formatted_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong format string is handled as logging does it, and is not raised."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    report("%d spans", "no number")
    assert lines(caplog) == []
    assert sys.exc_info() == (None, None, None)


def test_kinds_without_end_are_logged_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """A library that writes numbers into what should be constant fills no log."""
    digest = provider.ReportDigest()
    for number in range(1000):
        digest.handle(
            logging.LogRecord("opentelemetry.x", logging.ERROR, "", 1, f"{number}", None, None)
        )
    assert len(lines(caplog)) == report_limit.MAX_KINDS
