"""A storage whose requests are recorded and can be disturbed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

PNG = "image/png"


class Watched(Storage):
    """A storage that records its requests; a test may act before and after one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls: list[str] = []
        #: Called before and after the first request of a name.
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def _call(self, operation: str, arguments: dict[str, Any], *, read_bytes: int = 0) -> Any:
        self.calls.append(operation)
        self.before.pop(operation, lambda: None)()
        reply = super()._call(operation, arguments, read_bytes=read_bytes)
        self.after.pop(operation, lambda: None)()
        return reply
