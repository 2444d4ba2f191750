"""A function as one of kombu's transport options."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class OptionFunction:
    """A function among the transport options that JSON can show, as `inspect stats` does."""

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask

    def __call__(self) -> int:
        """What the function returns."""
        return self._ask()

    def __json__(self) -> int:
        """The same, for kombu's JSON encoder."""
        return self._ask()
