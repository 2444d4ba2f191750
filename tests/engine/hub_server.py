"""A stand-in for the hub, and for what its client keeps."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, ClassVar

from tests.engine.jobs import SPEC

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "c" * 40
REMOTE = SPEC.model_copy(update={"path": "owner/name"})


def cached(cache: Path, repository: str) -> Path:
    """The empty folder of a repository's files in the cache, as the hub's client makes it."""
    there = cache / f"models--{repository.replace('/', '--')}"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("c0")
    (there / "snapshots" / "c0").mkdir(parents=True)
    return there / "snapshots" / "c0"


class Hub(BaseHTTPRequestHandler):
    """Serves the files of `folder` as those of any repository, and notes which were asked for."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """A folder's list of files, or one of them."""
        path = self.path.partition("?")[0]
        files = [each for each in self.folder.rglob("*") if each.is_file()]
        if path.endswith(f"/tree/{COMMIT}"):
            listed = [
                {"type": "file", "path": str(each.relative_to(self.folder)), "oid": COMMIT,
                 "size": each.stat().st_size}
                for each in files
            ]  # fmt: skip
            self._answer(json.dumps(listed).encode())
        elif path.startswith("/api/models/"):
            names = [{"rfilename": str(each.relative_to(self.folder))} for each in files]
            model = {"id": "owner/name", "sha": COMMIT, "siblings": names}
            self._answer(json.dumps(model).encode())
        elif name := path.partition(f"/resolve/{COMMIT}/")[2]:
            if self.command == "GET":
                self.asked.append(name)
            self._answer((self.folder / name).read_bytes())
        else:
            self._answer(b"{}")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815  # http.server calls it so
