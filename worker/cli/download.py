"""Downloads images by their presigned URLs and saves them. Trusts neither URL nor record."""

from __future__ import annotations

import contextlib
import hashlib
import time
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING

from api_contracts import GenerationError
from worker.cli.console import printable
from worker.time_limit import call_within

if TYPE_CHECKING:
    from pathlib import Path

    from api_contracts import ImageResult

#: Time limit of one download, in seconds.
DOWNLOAD_TIMEOUT_S = 60.0
#: Largest read, in bytes: a record may claim any size, and a read allocates all of it at once.
READ_BYTES = 2**16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the image must come from the URL in the record."""

    def redirect_request(self, *_: object) -> None:
        """Make a redirect raise `HTTPError`, as any other status that is not 2xx."""


def save(image: ImageResult, name: str, folder: Path) -> Path:
    """Download an image into `folder` and return its file; raises `GenerationError`."""
    file_name = f"{name}-{printable(image.key.rsplit('/', 1)[-1])}"
    return _write(folder / file_name, fetch(image))


def fetch(image: ImageResult, timeout_s: float = DOWNLOAD_TIMEOUT_S) -> bytes:
    """Download an image and check its digest; raises `GenerationError`."""
    url = image.url
    if url is None:
        message = f"the worker presigns no URLs (SAG_PRESIGN_S=0); fetch {image.key} yourself"
        raise GenerationError(message)
    if not url.startswith(("http://", "https://")):  # urllib would open files too
        raise GenerationError(f"the URL of {image.key} is neither http nor https")
    try:
        # The limit of a socket bounds each read, but not a name's lookup and not an answer that
        # comes byte by byte.
        data = call_within(timeout_s, lambda: _get(url, image.bytes + 1, timeout_s))
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed URL
        raise GenerationError(f"could not fetch {image.key}: {error}") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise GenerationError(f"the download of {image.key} differs from what the worker stored")
    return data


def _get(url: str, max_bytes: int, timeout_s: float) -> bytes:
    data, give_up_at_s = bytearray(), time.monotonic() + timeout_s
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=timeout_s) as answer:
        while part := answer.read1(min(READ_BYTES, max_bytes - len(data))):
            data += part
            if time.monotonic() > give_up_at_s:  # the caller has left; its thread would read on
                raise TimeoutError(f"no answer within {timeout_s:g} s")
    return bytes(data)


def _write(path: Path, data: bytes) -> Path:
    """Write a file completely or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # fails too where the name is too long for any file
            temporary.unlink(missing_ok=True)
        raise GenerationError(f"could not write {path}: {error}") from error
    return path
