"""What the span of an attempt says of its claim, its request and its outcome. No prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from api_contracts.errors import ErrorCode
from worker.execution.outcome import (
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
)

if TYPE_CHECKING:
    from worker.execution.delivery import Delivery
    from worker.execution.outcome import Outcome
    from worker.execution.resolved_request import ResolvedRequest
    from worker.record.claim import Claim
    from worker.recovery.active_tasks import ActiveTask
    from worker.tracing.spans import Value
    from worker.tracing.traces import Traces


def begin(
    traces: Traces, task: ActiveTask, claim: Claim, delivery: Delivery,
    resolved: ResolvedRequest | None,
) -> None:  # fmt: skip
    """Begin the span of a claimed task, if traces are on."""
    if not traces.is_on:
        return
    task.span = traces.attempt(claim, delivery.traceparent, delivery.queue, _asked(resolved))
    if task.span is not None:
        task.control.traceparent = task.span.traceparent


def end(traces: Traces, task: ActiveTask, outcome: Outcome) -> None:
    """Write the spans of an attempt that has ended in the record.

    Another worker that has claimed the task meanwhile has written the attempt's span.
    """
    if task.span is None or isinstance(outcome, TaskDropped):
        return
    span, task.span = task.span, None
    with traces.guard():
        stages = [*task.control.engine_stages(), *task.control.stages]
        span.end(stages, {"sag.outcome": outcome.label, **_made(outcome)}, _error(outcome))


def _asked(resolved: ResolvedRequest | None) -> dict[str, Value]:
    """Attributes of a valid request; `_made` has what the model may choose."""
    if resolved is None:
        return {}
    request = resolved.complete
    asked: dict[str, Value | None] = {
        "sag.model": request.model,
        "sag.steps": request.num_inference_steps,
        "sag.guidance_scale": request.guidance_scale,
        "sag.sag_scale": request.sag_scale,
        "sag.priority": request.priority,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _made(outcome: Outcome) -> dict[str, Value]:
    """Attributes of the images."""
    if not isinstance(outcome, TaskSucceeded):
        return {}
    images = outcome.result.images
    return {
        "sag.images": len(images),
        "sag.height_px": images[0].height,
        "sag.width_px": images[0].width,
        "sag.scheduler": outcome.result.scheduler,
        "sag.batch": outcome.result.batch,
    }


def _error(outcome: Outcome) -> str | None:
    """The code of a failed attempt. Cancelled and drained ones have not failed."""
    match outcome:
        case TaskFailed(error=error):
            return error.code
        case TaskExpired():
            return ErrorCode.DEADLINE_EXCEEDED
        case TaskRequeued(reason=reason, counts=True):
            return reason.partition(":")[0].replace(" ", "_")
        case TaskSucceeded() | TaskCancelled() | TaskRequeued() | TaskDropped():
            return None
        case _:
            assert_never(outcome)
