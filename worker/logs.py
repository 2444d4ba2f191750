"""Log format and levels of a process: text or JSON, on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Literal

#: `SAG_LOG_FORMAT`.
Form = Literal["text", "json"]


def without_logins(text: str) -> str:
    """A text without the user and password of its URLs."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record without the logins of URLs."""
        return without_logins(super().format(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: at, pid, level, logger, message and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, without the logins of URLs."""
        entry = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "pid": record.process,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_logins(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = without_logins(self.formatException(record.exc_info))
        return json.dumps(entry)


def configure(form: Form) -> None:
    """Send the log records of this process to standard error in `form`."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter(
        "%(asctime)s %(process)d %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    text.converter = time.gmtime
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Celery logs each result with its presigned URLs, and a traceback for each requeued task.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    for noisy in ("httpx", "httpx2", "botocore", "urllib3", "filelock", "celery.worker.strategy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
