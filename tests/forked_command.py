"""Be a command in a process that was just forked, as `python -m ...` would be it."""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def become(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the command, in a process that was just forked."""

    def work() -> None:
        _replace(request, files)
        _call(request["command"])

    _leave(_status_of(work))


def _status_of(work: Callable[[], None]) -> int:
    """Call `work`; the status with which an interpreter would end after it."""
    try:
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # an interpreter prints what nothing has caught
        traceback.print_exc()
        return 1
    return 0


def _replace(request: dict[str, Any], files: Sequence[int]) -> None:
    """Take the command's session, files, environment and signals."""
    os.setsid()
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=-1 if not os.isatty(1) else 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    util.spawnv_passfds = _fork_instead  # type: ignore[assignment]  # `str` is all that it is given
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup(force=True)


def _call(command: Sequence[str]) -> None:
    way, what, *arguments = command
    sys.path[0] = str(Path.cwd())
    if way == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def _leave(status: int) -> NoReturn:
    """End as an interpreter does: wait for threads that are no daemons, then call `atexit`'s."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what an interpreter calls
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _fork_instead(_path: str, args: Sequence[str], kept: Sequence[int]) -> int:
    """Stands for multiprocessing's way to execute its fork server and its resource tracker."""
    code = os.fsdecode(args[list(args).index("-c") + 1])
    pid = os.fork()
    if pid:
        return pid
    for each in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
        if each > 2 and each not in kept:
            with suppress(OSError):
                os.close(each)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _leave(_status_of(lambda: exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})))
