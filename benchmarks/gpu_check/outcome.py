"""What one part of the check found, as JSON. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from benchmarks.record import Cell, rounded

if TYPE_CHECKING:
    from pathlib import Path


class Status(StrEnum):
    """How a part ended."""

    PASSED = "passed"
    FAILED = "failed"
    #: It can't be had here, as a GPU's energy on a CPU.
    SKIPPED = "skipped"
    #: It was ended at its limit of seconds.
    KILLED = "killed"
    #: No time was left for it.
    NOT_REACHED = "not reached"


class Skipped(Exception):
    """Raised by a part that can't run here, with the reason."""


@dataclass(frozen=True)
class Check:
    """Something that had to hold, and whether it did."""

    what: str
    holds: bool


@dataclass(frozen=True)
class Outcome:
    """A part's end, and what it had found until then."""

    name: str
    status: Status
    seconds: float = 0.0
    #: Why it was not passed; empty where it was.
    reason: str = ""
    #: The finding in one sentence.
    headline: str = ""
    checks: list[Check] = field(default_factory=list)
    #: The rows of its table, columns with their units in their names.
    rows: list[dict[str, Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: For the goals and for other parts, by name.
    numbers: dict[str, float] = field(default_factory=dict)
    #: The end of what a part printed that was not passed.
    log: str = ""


_JSON = TypeAdapter(Outcome)


class Finding:
    """What a running part has found. Each call is written to a file: a part may be killed."""

    def __init__(self, name: str, path: Path) -> None:
        """`path` is the file that the parent process reads."""
        self._path = path
        self._outcome = Outcome(name, Status.KILLED)
        self._save()

    @property
    def failures(self) -> list[str]:
        """The checks that did not hold."""
        return [each.what for each in self._outcome.checks if not each.holds]

    def headline(self, text: str) -> None:
        """Set the finding in one sentence; the last one counts."""
        self._change(headline=text)

    def row(self, **cells: Cell) -> None:
        """Add a row to the table; numbers are rounded to four digits."""
        row = {
            name: rounded(cell) if isinstance(cell, float) else cell for name, cell in cells.items()
        }
        self._change(rows=[*self._outcome.rows, row])

    def note(self, text: str) -> None:
        """Add a sentence below the table."""
        self._change(notes=[*self._outcome.notes, text])

    def number(self, name: str, value: float) -> None:
        """Keep a number for the goals."""
        self._change(numbers=self._outcome.numbers | {name: rounded(value)})

    def check(self, what: str, *, holds: bool) -> None:
        """Note something that must hold; the part has failed where it does not."""
        self._change(checks=[*self._outcome.checks, Check(what, holds)])

    def end(self, status: Status, reason: str = "") -> None:
        """The part's end."""
        self._change(status=status, reason=reason)

    def _change(self, **changes: object) -> None:
        self._outcome = replace(self._outcome, **changes)  # type: ignore[arg-type]  # fields of it
        self._save()

    def _save(self) -> None:
        beside = self._path.with_suffix(".new")  # a reader never sees half of it
        beside.write_bytes(_JSON.dump_json(self._outcome))
        beside.replace(self._path)


def load(path: Path) -> Outcome:
    """What a part has written so far."""
    return _JSON.validate_json(path.read_bytes())
