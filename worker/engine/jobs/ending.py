"""How a job ends: its future gets the images or the error. Mostly on the side thread."""

from __future__ import annotations

from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING

from worker.engine.device import device_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from worker.engine.jobs.running_job import RunningJob
    from worker.engine.runner import Runner


def nothing() -> None:
    """Do nothing: on the side thread this ends after every call that was queued before it."""


def finish(runner: Runner, running: RunningJob, decoded: Sequence[torch.Tensor | None]) -> None:
    """Resolve the future of a decoded job. Runs on the side thread, after the job's reports."""
    error = running.error
    if error is None:
        try:
            finished = runner.finish(running.images, decoded)
            result = running.result(finished, runner.versions)
            running.images.clear()  # frees the device while the caller still holds the job
            running.future.set_result(result)
        except BaseException as raised:  # noqa: BLE001  # without its future the job never ends
            error = raised
    if error is not None:
        running.log.end()
        running.future.set_exception(device_errors.job_error(error))


def finish_stopped(
    running: RunningJob, final_checkpoint: Callable[[], None], reason: BaseException
) -> None:
    """Resolve the future of a stopped job after its checkpoint is saved. On the side thread."""
    try:
        final_checkpoint()
    finally:  # without its future the job never ends
        fail(running, reason)


def fail(running: RunningJob, error: BaseException) -> None:
    """Resolve the future of a job with its error, unless the caller has cancelled the future."""
    error = device_errors.job_error(error)
    running.log.end()
    with suppress(InvalidStateError):  # the future was cancelled
        running.future.set_exception(error)
