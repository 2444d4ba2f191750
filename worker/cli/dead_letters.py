"""The dead letters: tasks that no worker could finish, kept with request and reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from api_contracts.client.records import service_errors
from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.names import is_task_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_contracts.client.client import GenerationClient

#: Entries read by one call.
SLICE = 500
#: What a replayed task's id has behind the old one.
REPLAY = ".replay"


@dataclass(frozen=True)
class DeadLetter:
    """One task that ended for want of a worker that could do it."""

    entry: str
    task_id: str
    at: datetime
    attempt: int
    #: The last that tried.
    worker: str
    reason: str
    #: As JSON.
    request: str


class DeadLetters:
    """The stream of a namespace, oldest first. Raises `ServiceUnavailable` when Redis is away."""

    def __init__(self, client: GenerationClient) -> None:
        """`client` also submits what is replayed."""
        self._client = client

    def __iter__(self) -> Iterator[DeadLetter]:
        first = "-"
        while True:
            entries = self._slice(first)
            for entry, fields in entries:
                yield _letter(entry, fields)
            if len(entries) < SLICE:
                return
            first = f"({entries[-1][0].decode()}"

    def _slice(self, first: str) -> Any:  # noqa: ANN401  # redis-py's own reply
        redis, key = self._client.redis, self._client.keys.dead
        with service_errors():
            return redis.xrange(key, min=first, count=SLICE)

    def replay(self, task_id: str) -> str | None:
        """Submit a dead task again and forget the letter; gives the new id, None without a letter.

        The old id has ended and stays so. Doing it twice makes one task. Raises `InvalidRequest`
        when the request can't be read any more.
        """
        letters = [letter for letter in self if letter.task_id == task_id]
        if not letters:
            return None
        longer = task_id + REPLAY
        if not is_task_id(longer):  # too long: as unlikely to be another's as a random one
            longer = hashlib.sha256(task_id.encode()).hexdigest() + REPLAY
        handle = self._client.submit(_request(letters[-1]), longer)
        with service_errors():
            self._client.redis.xdel(self._client.keys.dead, *(each.entry for each in letters))
        return handle.task_id


def _request(letter: DeadLetter) -> Any:  # noqa: ANN401  # whatever was sent
    try:
        return json.loads(letter.request)
    except ValueError as error:
        what = "was cut when it was refused, or was never JSON"
        raise InvalidRequest([FieldError(where="request", what=what, limit="JSON")]) from error


def _letter(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
    milliseconds = int(entry.split(b"-")[0])
    return DeadLetter(
        entry=entry.decode(),
        task_id=text.get("task_id", ""),
        at=datetime.fromtimestamp(milliseconds / 1000, UTC),
        attempt=int(text.get("attempt", "0")),
        worker=text.get("worker", ""),
        reason=text.get("reason", ""),
        request=text.get("request", ""),
    )
