"""Where in the engine an operator was called: the innermost line of the worker."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import worker

_ROOT = str(Path(worker.__file__).parents[1])
#: Folders whose lines are named; the tests' too, which break the engine on purpose.
_NAMED = f"{_ROOT}/worker/", f"{_ROOT}/tests/"


@dataclass(frozen=True)
class Place:
    """A line of the worker."""

    file: str
    line: int
    function: str

    def short(self, *, line: bool) -> str:
        """File and function, without what comprehensions and closures add to the name."""
        file = self.file.removeprefix("worker/engine/")
        function = self.function.split(".<locals>")[0]
        return f"{file}:{self.line} {function}" if line else f"{file} {function}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


def here() -> Place:
    """The innermost line of the worker on the stack of this thread."""
    frame = sys._getframe(1)  # noqa: SLF001  # inspect.stack reads source files
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_NAMED):
            return Place(file[len(_ROOT) + 1 :], frame.f_lineno, frame.f_code.co_qualname)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Place("the dry run itself", 0, "")
