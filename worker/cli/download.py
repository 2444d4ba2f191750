"""Pictures fetched by their presigned URLs, and written to disk. Trusts neither URL nor record."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import urllib.request
from concurrent.futures import Future, wait
from http.client import HTTPException
from typing import TYPE_CHECKING

from api_contracts import GenerationError
from worker.cli.console import printable

if TYPE_CHECKING:
    from pathlib import Path

    from api_contracts import ImageResult

#: Time for a picture to arrive, in seconds.
DOWNLOAD_S = 60
#: Most bytes of a picture in one read: a record may claim any size, and memory is taken at once.
READ_BYTES = 2**16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Answers are taken from where the record says and from nowhere else."""

    def redirect_request(self, *_: object) -> None:
        """Let a redirect be the error that any other refusal is."""


def save(image: ImageResult, name: str, folder: Path) -> Path:
    """Fetch a picture by its presigned URL into `folder`; gives the file."""
    return _written(folder / f"{name}-{printable(image.key.rsplit('/', 1)[-1])}", fetch(image))


def fetch(image: ImageResult, timeout_s: float = DOWNLOAD_S) -> bytes:
    """A picture by its presigned URL: what the worker stored, or a `GenerationError`."""
    if image.url is None:
        message = f"the worker presigns nothing (SAG_PRESIGN_S=0); fetch {image.key} yourself"
        raise GenerationError(message)
    if not image.url.startswith(("http://", "https://")):  # urllib would read files, too
        raise GenerationError(f"the URL of {image.key} is none of http or https")
    try:
        data = _read(image.url, image.bytes + 1, timeout_s)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no URL
        message = f"could not fetch {image.key}: {error}"
        raise GenerationError(message) from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        message = f"what came for {image.key} is not what the worker stored"
        raise GenerationError(message)
    return data


def _read(url: str, most_bytes: int, timeout_s: float) -> bytes:
    """What a URL gives, at most so much of it, and for no longer than it may take in all.

    By a thread that is left behind: a name's lookup and headers that drip have no end of their own.
    """
    found: Future[bytes] = Future()

    def read() -> None:
        try:
            found.set_result(_bytes_of(url, most_bytes, timeout_s))
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            found.set_exception(error)

    threading.Thread(target=read, name="download", daemon=True).start()
    done, _ = wait([found], timeout_s)
    if not done:
        raise _late(timeout_s)
    return found.result()


def _bytes_of(url: str, most_bytes: int, timeout_s: float) -> bytes:
    data, until_s = bytearray(), time.monotonic() + timeout_s
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=timeout_s) as answer:
        while some := answer.read1(min(READ_BYTES, most_bytes - len(data))):
            data += some
            if time.monotonic() > until_s:
                raise _late(timeout_s)
    return bytes(data)


def _late(timeout_s: float) -> TimeoutError:
    return TimeoutError(f"it did not come in {timeout_s:g} s")


def _written(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # as where the name is too long for any file
            temporary.unlink(missing_ok=True)
        message = f"could not write {path}: {error}"
        raise GenerationError(message) from error
    return path
