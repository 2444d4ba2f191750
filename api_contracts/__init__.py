"""What other backends need to submit tasks to the workers and to follow them.

Start at `client.client` for the calls, at `request` and `events` for the contract. Never imports
`worker` or torch.
"""

from api_contracts.client.aio_client import AsyncGenerationClient, AsyncTaskHandle
from api_contracts.client.client import GenerationClient
from api_contracts.client.handle import TaskHandle
from api_contracts.errors import (
    ErrorCode,
    FieldError,
    GenerationCancelled,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    InvalidRequest,
    ServiceUnavailable,
    TaskError,
    TaskNotFound,
    WaitTimeout,
)
from api_contracts.events import Event, TaskStatus
from api_contracts.pushes import Push, PushKind, PushState
from api_contracts.request import GenerationRequest, Limits
from api_contracts.request_types import ImageReference, Reference, ReplyTo
from api_contracts.result import GenerationResult, ImageResult, Timings

#: `FieldError` under its name in version 0.1.
Fault = FieldError

__all__ = [
    "AsyncGenerationClient",
    "AsyncTaskHandle",
    "ErrorCode",
    "Event",
    "Fault",
    "FieldError",
    "GenerationCancelled",
    "GenerationClient",
    "GenerationError",
    "GenerationExpired",
    "GenerationFailed",
    "GenerationRequest",
    "GenerationResult",
    "ImageReference",
    "ImageResult",
    "InvalidRequest",
    "Limits",
    "Push",
    "PushKind",
    "PushState",
    "Reference",
    "ReplyTo",
    "ServiceUnavailable",
    "TaskError",
    "TaskHandle",
    "TaskNotFound",
    "TaskStatus",
    "Timings",
    "WaitTimeout",
]
