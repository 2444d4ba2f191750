"""Decides from an exception whether loading a model may succeed later. Imports no torch."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from huggingface_hub.errors import OfflineModeIsEnabled

if TYPE_CHECKING:
    from collections.abc import Iterator

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
#: HTTP's status for too many requests, and the first that means a fault of the server.
_TOO_MANY, _SERVER_ERROR = 429, 500


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
    if isinstance(error, (MemoryError, ConnectionError, TimeoutError)):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == _TOO_MANY or status >= _SERVER_ERROR
    return isinstance(error, OSError) and error.errno not in (None, *_LASTING)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
