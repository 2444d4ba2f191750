"""The two log formats."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from worker import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.logs import Form


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Put back handlers and level of the tests' own log."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def lines(form: Form, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What some records are on standard error; nothing is on standard output."""
    logs.configure(form)
    logger = logging.getLogger("worker.x")
    logger.info("two\nlines %s", "\u00e4 \ud800")
    logger.debug("not logged")
    logging.getLogger("botocore").info("not logged")
    try:
        raise ValueError("why")  # noqa: TRY301  # the test logs it
    except ValueError:
        logger.exception("it failed")
    output = capfd.readouterr()
    assert output.out == ""
    return output.err.splitlines()


def test_json_is_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the message contains, each record is one line of JSON, with its traceback."""
    first, second = (json.loads(line) for line in lines("json", capfd))
    assert set(first) == {"at", "pid", "level", "logger", "message"}
    assert first["message"] == "two\nlines \u00e4 \ud800"
    assert (first["level"], first["logger"]) == ("info", "worker.x")
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert second["traceback"].endswith("ValueError: why")


def test_text_has_level_logger_and_message(capfd: pytest.CaptureFixture[str]) -> None:
    """The text format has the same records as the other."""
    found = lines("text", capfd)
    assert "INFO" in found[0]
    assert "worker.x: two" in found[0]
    assert found[-1] == "ValueError: why"
    assert not any("not logged" in line for line in found)


@pytest.mark.parametrize(
    ("created", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (1.5, "1970-01-01T00:00:01.500Z")]
)
def test_timestamps_are_utc(created: float, text: str) -> None:
    """A record's time is RFC 3339 in UTC, to the millisecond."""
    record = logging.LogRecord("n", logging.INFO, "", 0, "m", None, None)
    record.created, record.msecs = created, created % 1 * 1000
    at = json.loads(logs.JsonFormatter().format(record))["at"]
    assert at == text
    assert datetime.fromisoformat(at).timestamp() == created
