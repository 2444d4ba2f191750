"""The module that the fork server of `sag-worker run` imports: it imports what all workers need.

Importing it turns a process into that server; multiprocessing offers no other hook.
"""

from __future__ import annotations

import gc
import importlib

from worker.supervisor import child_process

child_process.become_fork_server()
# What is imported stays: to look for garbage meanwhile would take 1.5 s more than the 7.5 without.
gc.disable()
for _name in (
    "celery.bin.celery",
    "celery.apps.worker",
    "worker.cli.main",
    "worker.app",
    "worker.execution.image_files",
    "worker.execution.input_images",
    "worker.engine.loading.model_loader",
    "worker.engine.runner",
    "worker.engine.device.warmup",
):
    importlib.import_module(_name)
# A child's first collection would write to every object here, and so copy its memory page. Frozen,
# a child needs 0.07 s of processor time until it is ready instead of 0.5, and four children two
# thirds of the memory.
gc.collect()
gc.freeze()
gc.enable()
