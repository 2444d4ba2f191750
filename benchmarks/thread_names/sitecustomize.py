"""Python runs this first in each measured worker, whose `PYTHONPATH` names this folder.

It gives the kernel the names of Python's threads, as Python 3.14 does by itself. Threads that
other libraries start, those of OpenMP for example, inherit the name of the thread that started
them. The worker's own code stays as it is, so an earlier checkout can be measured as well.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

#: Most characters of a thread's name that Linux keeps.
MAX_NAME = 15


def _name_thread(_frame: FrameType, _event: str, _value: object) -> None:
    """Called once on each new thread, by its first function call."""
    sys.setprofile(None)
    thread = threading.current_thread()
    comm = Path(f"/proc/self/task/{thread.native_id}/comm")
    comm.write_text(thread.name[:MAX_NAME])


threading.setprofile(_name_thread)
