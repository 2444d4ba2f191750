"""What is submitted: requests from a small pool, by three ways, with some trouble among them.

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
#: What in a prompt has a worker kill itself.
POISON_MARK = "chaos-poison"

#: One task in so many wants its end to be pushed: to this queue, as this task.
REPLY_IN, REPLY_TO = 5, {"queue": "chaos-replies", "task": "chaos.ended"}
#: One request in so many takes this many steps: in company longer than a lease.
LONG_IN, LONG_STEPS = 8, 30
_SCHEDULERS = (None, "ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "heun", "ddpm")
_SIZES = ("large", "small")
_COLOURS = ("red", "green", "blue", "yellow", "pink", "white")
_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
_GROUNDS = ("black", "purple", "cyan", "orange")
#: Of so many orders one leaves litter beside it, one has a broken body, one comes twice at once,
#: one comes again after its end.
_LITTER_IN, _BROKEN_IN, _TWICE_IN, _LATER_IN = 25, 40, 12, 15


class Way(StrEnum):
    """How a task is submitted."""

    CLIENT = "client"
    #: `send_task` of a Celery that has nothing of ours.
    CELERY = "celery"
    #: LPUSH of a message as `docs/calling.md` shows it.
    RAW = "raw"


class Expect(StrEnum):
    """How a task ends unless somebody cancels it."""

    PICTURES = "pictures"
    EXHAUSTED = "attempts_exhausted"
    REFUSED = "invalid_request"


class Again(StrEnum):
    """When the same id is submitted a second time."""

    NEVER = "never"
    AT_ONCE = "at once"
    LATER = "later"


@dataclass(frozen=True)
class Order:
    """One task to submit."""

    task_id: str
    #: Number in the pool.
    request: int
    way: Way = Way.CLIENT
    expects: Expect = Expect.PICTURES
    again: Again = Again.NEVER
    #: Which entry that is no message of ours is pushed beside it, if any.
    litter: int | None = None
    #: Whether its end is to be pushed.
    replies: bool = False


def pool(seed: int, size: int, more_steps: int = 0) -> list[dict[str, Any]]:
    """Distinct requests of 64 px by several schedulers, every fourth of two images.

    All but a few are quick, unless each has `more_steps`.
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


def orders(seed: int, count: int | None, size: int, poison_in: int | None) -> Iterator[Order]:
    """`count` orders, without end when None; one in `poison_in` kills its workers.

    7 of 10 come by the client, the others in halves by plain Celery and raw.
    """
    rng = random.Random(f"orders {seed}")
    number = 0
    while count is None or number < count:
        (way,) = rng.choices((Way.CLIENT, Way.CELERY, Way.RAW), (70, 15, 15))
        request = rng.randrange(size)
        broken, litter = rng.randrange(_BROKEN_IN) == 0, rng.randrange(_LITTER_IN) == 0
        at_once, later = rng.randrange(_TWICE_IN) == 0, rng.randrange(_LATER_IN) == 0
        which = rng.randrange(1000)
        expects = Expect.REFUSED if broken else Expect.PICTURES
        if poison_in and number % poison_in == poison_in // 2:
            expects = Expect.EXHAUSTED
        again = Again.AT_ONCE if at_once else Again.LATER if later else Again.NEVER
        yield Order(
            f"c{seed}-{number:05d}",
            request,
            Way.RAW if expects is Expect.REFUSED else way,
            expects,
            Again.NEVER if expects is Expect.EXHAUSTED else again,
            which if litter else None,
            replies=number % REPLY_IN == 1 and expects is not Expect.REFUSED,
        )
        number += 1


def request_of(order: Order, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What the order asks for."""
    request = requests[order.request]
    if order.replies:
        request = request | {"reply_to": REPLY_TO}
    if order.expects is Expect.EXHAUSTED:
        return request | {"prompt": f"{request['prompt']} {POISON_MARK}"}
    return request


def message(order: Order, request: dict[str, Any]) -> bytes:
    """The order as an entry of Redis's list; one that must be refused has a body that is cut."""
    body = json.dumps([[], {"request": request}, {}]).encode()
    if order.expects is Expect.REFUSED:
        body = body[: len(body) // 2]
    return _entry(order.task_id, body)


def litter(number: int) -> bytes:
    """An entry that must have no effect at all."""
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
