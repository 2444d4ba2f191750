"""Translates device errors into errors of a job, and exits the process when its device failed."""

from __future__ import annotations

import logging
import os
import traceback

from worker.errors import DeviceOutOfMemoryError, TaskFailedError
from worker.exit_codes import DEVICE_FAILED
from worker.job_control import JobStopped

logger = logging.getLogger(__name__)

#: Messages of libraries whose workspace did not fit; torch has a class for its own allocator only.
_NO_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "nable to find an engine to execute this computation",
    "nable to find a valid cuDNN algorithm",
)


def job_error(error: BaseException) -> Exception:
    """The exception for the job's future; exits the process instead if the device failed.

    Clears the frames of the error and of its causes, which hold tensors on the device.
    """
    if isinstance(error, (JobStopped, TaskFailedError)):
        clear_frames(error)
        return error
    exit_if_device_failed(error)
    clear_frames(error)
    if is_out_of_memory(error):
        failure = DeviceOutOfMemoryError(
            "the device has not enough memory left for this task; ask for a smaller image or"
            " fewer images, or try again"
        )
        failure.__cause__ = error
        return failure
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def exit_if_device_failed(error: BaseException) -> None:
    """Exit with status 70 if `error` came from a device on which every later call will fail.

    The tasks stay claimed and their messages unacknowledged, for another process.
    """
    import torch  # noqa: PLC0415  # the engine is imported without it

    if not isinstance(error, torch.AcceleratorError):
        return
    try:  # on this thread's device, which the engine has set
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        logger.critical("device failed, exiting with status %d", DEVICE_FAILED, exc_info=error)
        logging.shutdown()
        os._exit(DEVICE_FAILED)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the same call may succeed with fewer rows."""
    import torch  # noqa: PLC0415  # the engine is imported without it

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in _NO_MEMORY)
    )


def clear_frames(error: BaseException | None) -> None:
    """Clear the local variables in the tracebacks of an error and of its causes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
