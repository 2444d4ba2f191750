"""Log format and levels of a process: text or JSON, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

#: `SAG_LOG_FORMAT`.
Form = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: at, pid, level, logger, message and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        entry = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "pid": record.process,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(form: Form) -> None:
    """Send the log records of this process to standard error in `form`."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(
        "%(asctime)s %(process)d %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    text.converter = time.gmtime
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Celery logs each result with its presigned URLs, and a traceback for each requeued task.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    for noisy in ("httpx", "botocore", "urllib3", "filelock", "celery.worker.strategy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
