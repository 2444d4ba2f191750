"""What an error means for the job that met it, and for the process."""

from __future__ import annotations

import logging
import os
import traceback

from worker.engine.job import JobStopped
from worker.errors import OutOfMemory, TaskFault

logger = logging.getLogger(__name__)

#: Exit status of a process whose device fails.
DEVICE_FAILED = 70


def fault_of(error: BaseException) -> Exception:
    """The error as the job's future gives it. A device that fails ends the process instead.

    The frames of the error and of its causes are emptied: they hold tensors on the device.
    """
    if isinstance(error, (JobStopped, TaskFault)):
        forget_frames(error)
        return error
    import torch  # noqa: PLC0415  # whoever met another error has loaded it

    if isinstance(error, torch.AcceleratorError):
        # Every later call of this process would fail too, and end a task each: leave the task and
        # its message as they are, for another process.
        logger.critical("the device fails; this process ends", exc_info=error)
        logging.shutdown()
        os._exit(DEVICE_FAILED)
    forget_frames(error)
    if is_out_of_memory(error):
        fault = OutOfMemory(
            "the device has not enough memory for this task, even alone; ask for a smaller picture"
            " or fewer images"
        )
        fault.__cause__ = error
        return fault
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the same may succeed with less at once."""
    import torch  # noqa: PLC0415  # see `fault_of`

    return isinstance(error, torch.OutOfMemoryError)


def forget_frames(error: BaseException | None) -> None:
    """Empty the frames of an error and of its causes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
