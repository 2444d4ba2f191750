"""Part: from `sag-worker run` to the first picture, and what the imports take of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.gpu_check import given, service

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

#: Imported one after the other in a fresh interpreter; each counts what those before had not.
IMPORTS = (
    "torch",
    "transformers",
    "diffusers",
    "celery.bin.celery",
    "worker.engine.loading.model_loader",
    "worker.engine.runner",
)
IMPORT_S = 60.0
READY_S = 60.0
_PROGRAM = """
import importlib, json, sys, time
times = {}
for name in sys.argv[1:]:
    began = time.perf_counter()
    importlib.import_module(name)
    times[name] = time.perf_counter() - began
print(json.dumps(times))
"""


def run(setting: Setting, found: Finding) -> None:
    """The task waits before the daemon is started; a second one tells what a warm one takes."""
    first, second = given.make(setting, 2, setting.steps)
    settings = {"max_batch_rows": setting.max_batch_rows}
    with service.servers() as servers:
        began_s = time.perf_counter()
        with service.daemon(servers, setting.sd15(), settings, wait=False) as daemon:
            handle = daemon.submit(first)
            ready_s = service.wait_until_ready(daemon, READY_S) - began_s
            found.row(what="from the command to `ready.`", seconds=ready_s)
            timings = daemon.result(handle).timings
            picture_s = time.perf_counter() - began_s
            found.row(what="from the command to the first picture in S3", seconds=picture_s)
            found.row(what="of it, loading and warming up the model", seconds=timings.load_s)
            began_s = time.perf_counter()
            daemon.result(daemon.submit(second))
            warm_s = time.perf_counter() - began_s
            found.row(what="a second picture, all warm", seconds=warm_s)
    found.number("first_picture_s", picture_s)
    found.headline(
        f"`ready.` after {ready_s:.1f} s, the first picture after {picture_s:.1f} s, the next one "
        f"in {warm_s:.1f} s."
    )
    for name, seconds in _imports().items():
        found.row(what=f"import {name}", seconds=seconds)
    found.note(
        "Weights that were just written lie in the page cache: from a cold disk loading is slower."
    )


def _imports() -> dict[str, float]:
    ran = subprocess.run(  # noqa: S603  # a fixed command
        [sys.executable, "-c", _PROGRAM, *IMPORTS],
        check=True,
        stdout=subprocess.PIPE,
        timeout=IMPORT_S,
    )
    times: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return times
