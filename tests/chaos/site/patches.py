"""Changes inside a worker under test, each requested by an environment variable.

Imports the standard library alone: every Python process of a worker runs this first.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import threading
import time
from functools import partial
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: Seconds by which the wall clock is shifted.
CLOCK = "CHAOS_CLOCK_OFF_S"
#: A job whose prompt contains this text kills its process at step `POISON_STEP`.
POISON = "CHAOS_POISON"
POISON_STEP = 2
#: The mechanism, one of `SWITCHES`, that is turned off.
OFF = "CHAOS_OFF"
#: What a process logs when it has turned a mechanism off; without it the run proves nothing.
OFF_LINE = "chaos: %s is off"

#: How every Lua script compares the token of the claim.
_FENCE = re.compile(r"held\[1\] ~= token")


def install(environment: Mapping[str, str]) -> None:
    """Make the changes that the variables ask for, now or when the module is imported."""
    if offset_s := environment.get(CLOCK):
        _shift_clock(float(offset_s))
    if mark := environment.get(POISON):
        after_import("worker.engine.engine", partial(_poison, mark))
    if name := environment.get(OFF):
        module, patch = SWITCHES[name]
        after_import(module, patch)


def after_import(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Call `patch` with the module `name` when it is first imported."""
    sys.meta_path.insert(0, _Watcher(name, patch))


class _Watcher(MetaPathFinder):
    """Adds a call to the loader that the other finders give for one module."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self._name, self._patch = name, patch

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """The usual spec, with a loader that patches the module after running it."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            usual = spec.loader.exec_module

            def run(module: ModuleType) -> None:
                usual(module)
                self._patch(module)

            spec.loader.exec_module = run  # type: ignore[method-assign]  # this module's own loader
        return spec


def _shift_clock(offset_s: float) -> None:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + offset_s
    time.time_ns = lambda: real_ns() + int(offset_s * 1e9)


def _poison(mark: str, engine: ModuleType) -> None:
    usual = engine.Engine.submit

    def submit(self: Any, job: Any, control: Any, *rest: Any, **more: Any) -> Any:
        if any(mark in prompt for prompt in job.prompts):
            report = control.on_step

            def on_step(step: Any) -> None:
                report(step)
                if step.step >= POISON_STEP:
                    os.kill(os.getpid(), signal.SIGKILL)

            control.on_step = on_step
        return usual(self, job, control, *rest, **more)

    engine.Engine.submit = submit


def _log_off(name: str) -> None:
    print(OFF_LINE % name, file=sys.stderr, flush=True)


def _without_lease(lease: ModuleType) -> None:
    """The lease's thread never starts, so nothing is renewed, and the worker does not notice."""
    usual = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if "lease" in self.name:
            _log_off("lease")
        else:
            usual(self)

    assert lease.Lease.is_well  # fails when it is renamed
    lease.Lease.is_well = True
    threading.Thread.start = start  # type: ignore[method-assign]  # for this process alone


def _without_fence(scripts: ModuleType) -> None:
    """The scripts accept every fence as the current one."""
    usual = scripts.text

    def text(package: str, name: str) -> str:
        changed, places = _FENCE.subn("false", usual(package, name))
        if places:
            _log_off("fence")
        return changed

    scripts.text = text  # type: ignore[attr-defined]  # all scripts are loaded here


def _without_reconciler(reconciler: ModuleType) -> None:
    """The reconciler does nothing."""

    def run_once(*_: Any, **__: Any) -> None:
        return None

    reconciler.Reconciler.run_once = run_once
    _log_off("reconciler")


#: By mechanism, the module that is patched after its import, and the patch.
SWITCHES: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "lease": ("worker.recovery.lease", _without_lease),
    "fence": ("api_contracts.redis_io.scripts", _without_fence),
    "reconciler": ("worker.recovery.reconciler", _without_reconciler),
}
