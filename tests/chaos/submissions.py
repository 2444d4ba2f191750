"""What is submitted: requests from a small pool, by three senders, some of them faulty.

A pure function of the seed.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from api_contracts.names import DEFAULT_MODEL, PRIORITY_SEPARATOR, TASK_NAME, queue_name

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = queue_name(DEFAULT_MODEL)
#: The list that the client's default priority goes to.
PRIORITY = 5
LIST = f"{QUEUE}{PRIORITY_SEPARATOR}{PRIORITY}"
#: A worker that gets a prompt with this text kills itself.
POISON_MARK = "chaos-poison"

#: A model whose hub never answers, and the deadline of its tasks.
REMOTE_MODEL, REMOTE_DEADLINE_S = "remote", 12
#: One task in `REPLY_IN` has a `reply_to`: this queue and task.
REPLY_IN, REPLY_TO = 5, {"queue": "chaos-replies", "task": "chaos.ended"}
#: One request in `LONG_IN` has `LONG_STEPS`: beside others it takes longer than a lease.
LONG_IN, LONG_STEPS = 8, 30
_SCHEDULERS = (None, "ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "heun", "ddpm")
_SIZES = ("large", "small")
_COLOURS = ("red", "green", "blue", "yellow", "pink", "white")
_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
_GROUNDS = ("black", "purple", "cyan", "orange")
#: One submission in so many: has a garbage entry beside it, has a broken body, is sent twice at
#: once, is sent again after its end.
_GARBAGE_IN, _BROKEN_IN, _TWICE_IN, _LATER_IN = 25, 40, 12, 15


class Sender(StrEnum):
    """What submits a task."""

    CLIENT = "client"
    #: `send_task` of a Celery application without this project's code.
    CELERY = "celery"
    #: LPUSH of a message as `docs/calling.md` shows it.
    RAW = "raw"


class Expected(StrEnum):
    """How a task ends unless it is cancelled."""

    PICTURES = "pictures"
    EXHAUSTED = "attempts_exhausted"
    REFUSED = "invalid_request"
    #: Its model can't be downloaded: it fails, or its deadline passes before.
    NOT_LOADED = "model_load_failed"


class Resubmit(StrEnum):
    """When the same id is submitted a second time."""

    NEVER = "never"
    AT_ONCE = "at once"
    LATER = "later"


@dataclass(frozen=True)
class Submission:
    """One task to submit."""

    task_id: str
    #: Index in the pool of requests.
    request: int
    sender: Sender = Sender.CLIENT
    expects: Expected = Expected.PICTURES
    resubmit: Resubmit = Resubmit.NEVER
    #: Which garbage entry is pushed beside it, if any.
    garbage: int | None = None
    #: Whether it has a `reply_to`.
    replies: bool = False


def request_pool(seed: int, size: int, more_steps: int = 0) -> list[dict[str, Any]]:
    """Distinct requests of 64 px with several schedulers, every fourth for two images.

    All but a few have few steps; `more_steps` are added to each.
    """
    rng = random.Random(f"pool {seed}")
    made = []
    for number in range(size):
        words = (rng.choice(_SIZES), rng.choice(_COLOURS), rng.choice(_SHAPES))
        steps = LONG_STEPS if number % LONG_IN == 6 else 2 + number % 5
        request: dict[str, Any] = {
            "prompt": f"a {' '.join(words)} on a {rng.choice(_GROUNDS)} background",
            "seed": 1000 * seed + number,
            "num_inference_steps": steps + more_steps,
            "num_images_per_prompt": 2 if number % 4 == 3 else 1,
        }
        if (scheduler := _SCHEDULERS[number % len(_SCHEDULERS)]) is not None:
            request["scheduler"] = scheduler
        if number % 6 == 5:
            request["sag_scale"] = 0.0
        made.append(request)
    return made


def draw_submissions(
    seed: int, count: int | None, size: int, poison_in: int | None
) -> Iterator[Submission]:
    """`count` submissions, without end when None; one in `poison_in` kills its workers.

    70 % are sent by the client, 15 % each by plain Celery and as raw messages.
    """
    rng = random.Random(f"orders {seed}")
    number = 0
    while count is None or number < count:
        (sender,) = rng.choices((Sender.CLIENT, Sender.CELERY, Sender.RAW), (70, 15, 15))
        request = rng.randrange(size)
        broken, garbage = rng.randrange(_BROKEN_IN) == 0, rng.randrange(_GARBAGE_IN) == 0
        at_once, later = rng.randrange(_TWICE_IN) == 0, rng.randrange(_LATER_IN) == 0
        which = rng.randrange(1000)
        expects = Expected.REFUSED if broken else Expected.PICTURES
        if poison_in and number % poison_in == poison_in // 2:
            expects = Expected.EXHAUSTED
        again = Resubmit.AT_ONCE if at_once else Resubmit.LATER if later else Resubmit.NEVER
        yield Submission(
            f"c{seed}-{number:05d}",
            request,
            Sender.RAW if expects is Expected.REFUSED else sender,
            expects,
            Resubmit.NEVER if expects is Expected.EXHAUSTED else again,
            which if garbage else None,
            replies=number % REPLY_IN == 1 and expects is not Expected.REFUSED,
        )
        number += 1


def request_of(submission: Submission, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The request of a submission."""
    request = requests[submission.request]
    if submission.replies:
        request = request | {"reply_to": REPLY_TO}
    if submission.expects is Expected.NOT_LOADED:
        return request | {"model": REMOTE_MODEL, "deadline_s": REMOTE_DEADLINE_S}
    if submission.expects is Expected.EXHAUSTED:
        return request | {"prompt": f"{request['prompt']} {POISON_MARK}"}
    return request


def message(submission: Submission, request: dict[str, Any]) -> bytes:
    """The entry of Redis's list; one that must be refused has a truncated body."""
    body = json.dumps([[], {"request": request}, {}]).encode()
    if submission.expects is Expected.REFUSED:
        body = body[: len(body) // 2]
    return _entry(submission.task_id, body)


def garbage(number: int) -> bytes:
    """An entry that must have no effect."""
    good = json.dumps([[], {"request": {"prompt": "a red circle"}}, {}]).encode()
    kinds = (
        b"\x00 no JSON",
        b'{"headers": null}',
        _entry("../../etc/passwd", good),
        _entry(f"other-{number}", good, task="os.system"),
        _entry("a" * 129, good),
        _entry("x/y", b"[]"),
    )
    return kinds[number % len(kinds)]


def _entry(task_id: str, body: bytes, task: str = TASK_NAME) -> bytes:
    entry = {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": task, "id": task_id},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": task_id,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": PRIORITY,
        },
    }
    return json.dumps(entry).encode()
