"""One part in its own process: runs it, writes what it found, and ends at its limit."""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_check.outcome import Finding, Skipped, Status

if TYPE_CHECKING:
    from benchmarks.gpu_check.setting import Setting

#: Imported once by the server that all parts are forked from.
PRELOADED = "benchmarks.gpu_check.preload"


def run(module: str, setting: Setting, parent: int, limit_s: float) -> None:
    """Run the part of a module; its files, as `parity.json` and `parity.log`, are in the folder."""
    name = module.rpartition(".")[2]
    with suppress(PermissionError):  # a session leader already
        os.setsid()
    _watch(parent, limit_s)
    folder = Path(setting.folder)
    with (folder / f"{name}.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    finding = Finding(name, folder / f"{name}.json")
    try:
        importlib.import_module(module).run(setting, finding)
    except Skipped as reason:
        finding.end(Status.SKIPPED, str(reason))
    except BaseException as error:  # noqa: BLE001  # whatever it is, the page says it
        traceback.print_exc()
        finding.end(Status.FAILED, f"{type(error).__name__}: {error}"[:600])
    else:
        failures = finding.failures
        finding.end(Status.FAILED if failures else Status.PASSED, "; ".join(failures))
    gc.collect()  # a pool's semaphores are unlinked when it is collected
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of a part that failed may never end


def _watch(parent: int, limit_s: float) -> None:
    """Kill this process and those that it forked at the limit, or when the check has ended."""

    def wait() -> None:
        with suppress(ProcessLookupError):  # it has ended already
            select.select([os.pidfd_open(parent)], [], [], limit_s)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
