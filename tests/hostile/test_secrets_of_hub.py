"""The login in `HF_ENDPOINT` appears in no error of a task, no finding of `doctor` and no log."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "somebody", "hush-hush"
#: Every way in which a worker and `doctor` ask the hub; prints what they say.
PROGRAM = """
from worker import logs
logs.configure("FORM")
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import http_backoff
from worker.config.models import SHIPPED_MODEL, Adapter, ModelSpec
from worker.doctor.hub import check_hub
from worker.engine.loading import hub
from worker.errors import ModelLoadError
whole = ModelSpec(path="owner/name", safety_checker=False)
ink = {"ink": Adapter(path="owner/ink")}
for spec in (whole, ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, adapters=ink)):
    try:
        hub.download(spec)
    except ModelLoadError as error:
        print("task:", error.error.message, repr(error))
found = check_hub("model", whole, "owner/name")
assert not found.ok
print("doctor:", found)
try:
    http_backoff("GET", constants.ENDPOINT, max_retries=1, base_wait_time=0.01)
except HfHubHTTPError:
    hub.logger.exception("failed")
"""


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  # the server's own name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """Host and port of a hub that answers nothing but 503."""
    server = ThreadingHTTPServer((embedded.LOOPBACK, 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{embedded.LOOPBACK}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_login_of_a_hub_is_not_shown(refusing: str, tmp_path: Path, form: str) -> None:
    """Host and status are said, and each line of the hub's client once."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://{USER}:{PASSWORD}@{refusing}", "HF_HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("FORM", form)],
        env=environment, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    said = done.stdout + done.stderr
    for secret in (USER, PASSWORD):
        assert secret not in said, [line for line in said.splitlines() if secret in line][:3]
    assert (done.stdout.count("task:"), done.stdout.count("doctor:")) == (2, 1)
    assert f"http://{refusing}/api/models/owner/name" in done.stdout
    assert done.stderr.count("Retrying in") == 1
    assert "HTTP Request" not in done.stderr
    assert "Traceback" in done.stderr
