"""What an error means for the job that met it, and for the process."""

from __future__ import annotations

import logging
import os
import traceback

from worker.errors import DeviceOutOfMemoryError, TaskFailedError
from worker.exit_codes import DEVICE_FAILED
from worker.job_control import JobStopped

logger = logging.getLogger(__name__)


def fault_of(error: BaseException) -> Exception:
    """The error as the job's future gives it. A device that fails ends the process instead.

    The frames of the error and of its causes are emptied: they hold tensors on the device.
    """
    if isinstance(error, (JobStopped, TaskFailedError)):
        forget_frames(error)
        return error
    leave_a_failed_device(error)
    forget_frames(error)
    if is_out_of_memory(error):
        fault = DeviceOutOfMemoryError(
            "the device has not enough memory left for this task; ask for a smaller picture or"
            " fewer images, or try again"
        )
        fault.__cause__ = error
        return fault
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def leave_a_failed_device(error: BaseException) -> None:
    """End the process if it is the device that fails.

    Every later call would fail too, and end a task each: this leaves the tasks and their messages
    as they are, for another process.
    """
    import torch  # noqa: PLC0415  # whoever met an error of a device has loaded it

    if not isinstance(error, torch.AcceleratorError):
        return
    try:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        logger.critical("the device fails; this process ends", exc_info=error)
        logging.shutdown()
        os._exit(DEVICE_FAILED)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the same may succeed with less at once."""
    import torch  # noqa: PLC0415  # see `fault_of`

    words = "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def forget_frames(error: BaseException | None) -> None:
    """Empty the frames of an error and of its causes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
