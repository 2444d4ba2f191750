"""Errors of loading a model, and whether it may succeed later. Imports no torch."""

from __future__ import annotations

import errno
import re
from http.client import HTTPException
from typing import TYPE_CHECKING

from huggingface_hub.errors import OfflineModeIsEnabled

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec

#: What to do about a model that can't be loaded; part of the error's message.
REMEDY = (
    "; correct its entry in SAG_MODELS or its files (`sag-worker doctor` names what is wrong),"
    " then submit the task again"
)
#: Errors of the file system that stay until the settings or the files change. All others, such as
#: EIO, ESTALE and ENOSPC, and all of the network may pass.
_LASTING = frozenset(
    {
        errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
        errno.EPERM,
    }
)  # fmt: skip
#: As torch and safetensors word an exhausted memory, in a RuntimeError.
_NO_MEMORY = re.compile(r"can(?:'|no)t allocate memory", re.IGNORECASE)
#: The number in an error of a library in Rust, which sets no `errno`.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
#: HTTP's status for too many requests, and the first that means a fault of the server.
_TOO_MANY, _SERVER_ERROR = 429, 500


def load_error(spec: ModelSpec, error: Exception) -> ModelLoadError:
    """The error of a task whose model could not be downloaded or loaded."""
    message = f"model {spec.path!r} could not be loaded: {error}"[:2000]
    if may_pass(error):
        return ModelLoadError(message)
    return ModelLoadError(message + REMEDY, retryable=False)


def refused(spec: ModelSpec, what: str, cause: Exception | None = None) -> ModelLoadError:
    """The error of a model that `what`, the end of a sentence; final unless its cause may pass."""
    message = f"model {spec.path!r} {what}"[:2000] + REMEDY
    return ModelLoadError(message, retryable=cause is not None and may_pass(cause))


def may_pass(error: BaseException) -> bool:
    """Whether the disk, the network or the memory is at fault rather than the model's files.

    diffusers and transformers wrap exceptions, often in an OSError without an errno, so the whole
    chain of causes is checked. Without such a cause the files are missing, broken or unsupported.
    """
    chain = list(_chain(error))
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return False  # a setting
    return any(_is_passing(each) for each in chain)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, ConnectionError, TimeoutError, HTTPException)):
        return True
    if _is_transport_error(error) or _NO_MEMORY.search(str(error)):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == _TOO_MANY or status >= _SERVER_ERROR
    if (found := _OS_ERROR.search(str(error))) is not None:
        return int(found[1]) not in _LASTING
    return isinstance(error, OSError) and error.errno not in (None, *_LASTING)


def _is_transport_error(error: BaseException) -> bool:
    """Whether the hub's HTTP client got no answer: refused, cut off, or a proxy that fails."""
    return any(
        each.__name__ == "TransportError" and each.__module__.startswith("httpx")
        for each in type(error).__mro__
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
