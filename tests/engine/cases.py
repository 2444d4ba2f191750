"""Which cases run by day (`make test`), in `make test-all` and in `make nightly`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def slow(*values: Any) -> list[Any]:
    """Parameters for `make test-all`; a tuple is several parameters of one case."""
    return _marked(values, pytest.mark.slow)


def nightly(*values: Any) -> list[Any]:
    """Parameters for `make nightly`."""
    return _marked(values, pytest.mark.nightly)


def rotated(names: Iterable[Any], options: Sequence[Any], rest: Any = nightly) -> list[Any]:
    """All pairs of a name and an option; by day each name with one option, in turn.

    Name i has option i modulo the number of options; the other pairs are marked by `rest`.
    """
    by_day: list[Any] = []
    others: list[Any] = []
    for index, name in enumerate(names):
        for number, option in enumerate(options):
            (by_day if number == index % len(options) else others).append((name, option))
    return [*by_day, *rest(*others)]


def chosen(names: Iterable[Any], by_day: Iterable[Any], rest: Any = slow) -> list[Any]:
    """The names by day as they are, the others marked by `rest`."""
    kept = list(by_day)
    return [*kept, *rest(*(name for name in names if name not in kept))]


def _marked(values: Iterable[Any], mark: Any) -> list[Any]:
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=mark)
        for value in values
    ]
