"""Dead letters: tasks that no worker could finish, stored with their request and reason."""

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
PAGE_ENTRIES = 500
#: Suffix of a replayed task's id.
REPLAY_SUFFIX = ".replay"


@dataclass(frozen=True)
class DeadLetter:
    """A task that failed because no worker could finish it."""

    entry: str
    task_id: str
    at: datetime
    attempt: int
    #: The last worker that tried.
    worker: str
    reason: str
    #: As JSON.
    request: str


class DeadLetters:
    """The dead letters of a namespace, oldest first.

    Raises `ServiceUnavailable` when Redis does not answer.
    """

    def __init__(self, client: GenerationClient) -> None:
        """`client` reads the dead letters and submits the tasks that are replayed."""
        self._client = client

    def __iter__(self) -> Iterator[DeadLetter]:
        start = "-"
        while True:
            entries = self._page(start)
            for entry, fields in entries:
                yield _parse(entry, fields)
            if len(entries) < PAGE_ENTRIES:
                return
            start = f"({entries[-1][0].decode()}"

    def _page(self, start: str) -> Any:  # noqa: ANN401  # redis-py's own reply
        redis, key = self._client.redis, self._client.keys.dead
        with service_errors():
            return redis.xrange(key, min=start, count=PAGE_ENTRIES)

    def replay(self, task_id: str) -> str | None:
        """Submit a dead letter's task again, delete the letter; return the new id, None without it.

        The old task stays failed. Two replays make one task: the new id depends on the old one.
        Raises `InvalidRequest` when the stored request is not readable.
        """
        letters = [letter for letter in self if letter.task_id == task_id]
        if not letters:
            return None
        new_id = task_id + REPLAY_SUFFIX
        if not is_task_id(new_id):  # too long
            new_id = hashlib.sha256(task_id.encode()).hexdigest() + REPLAY_SUFFIX
        handle = self._client.submit(_request(letters[-1]), new_id)
        with service_errors():
            self._client.redis.xdel(self._client.keys.dead, *(each.entry for each in letters))
        return handle.task_id


def _request(letter: DeadLetter) -> Any:  # noqa: ANN401  # any JSON
    try:
        return json.loads(letter.request)
    except ValueError as error:
        what = "is not JSON: it was cut when it was refused, or never was JSON"
        raise InvalidRequest([FieldError(where="request", what=what, limit="JSON")]) from error


def _parse(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
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
