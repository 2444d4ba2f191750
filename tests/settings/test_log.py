"""The log's two forms."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from worker.logs import JsonFormatter

TALK = """
import logging, sys
from worker import log
log.configure(sys.argv[1])
logger = logging.getLogger("worker.x")
logger.info("two\\nlines %s", "\\u00e4 \\ud800")
logger.debug("not told")
logging.getLogger("botocore").info("not told")
try:
    raise ValueError("why")
except ValueError:
    logger.exception("it failed")
"""


def said(form: str) -> list[str]:
    command = [sys.executable, "-c", TALK, form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    """Whatever the message holds, each record is one line of JSON, with its traceback."""
    first, second = (json.loads(line) for line in said("json"))
    assert set(first) == {"at", "pid", "level", "logger", "message"}
    assert first["message"] == "two\nlines \u00e4 \ud800"
    assert (first["level"], first["logger"]) == ("info", "worker.x")
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert second["traceback"].endswith("ValueError: why")


def test_text_is_for_people() -> None:
    """The text form has level, logger and message, and the same records as the other."""
    lines = said("text")
    assert "INFO" in lines[0]
    assert "worker.x: two" in lines[0]
    assert lines[-1] == "ValueError: why"
    assert not any("not told" in line for line in lines)


@pytest.mark.parametrize(
    ("created", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (1.5, "1970-01-01T00:00:01.500Z")]
)
def test_stamps_are_utc(created: float, text: str) -> None:
    """A record's time is RFC 3339 in UTC, to the millisecond."""
    record = logging.LogRecord("n", logging.INFO, "", 0, "m", None, None)
    record.created, record.msecs = created, created % 1 * 1000
    at = json.loads(JsonFormatter().format(record))["at"]
    assert at == text
    assert datetime.fromisoformat(at).timestamp() == created
