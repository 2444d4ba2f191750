"""What the fork server holds for its children. Importing it makes a process that server.

The one module whose import does something: multiprocessing lets a server do nothing else.
"""

from __future__ import annotations

import gc
import importlib

from worker.supervisor import child_process

child_process.be_the_server()
for _name in (
    "celery.bin.celery",
    "celery.apps.worker",
    "worker.cli.main",
    "worker.app",
    "worker.execution.image_files",
    "worker.engine.model_loader",
    "worker.engine.runner",
    "worker.engine.warmup",
):
    importlib.import_module(_name)
# A child's first collection would write to every object here, and so copy its page: 0.5 s of a
# processor until it is ready instead of 0.07, and four children with half as much memory again.
gc.collect()
gc.freeze()
