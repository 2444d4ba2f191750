"""What the fork server holds for its children. Importing it makes a process that server.

The one module whose import does something: multiprocessing lets a server do nothing else.
"""

from __future__ import annotations

import gc
import importlib

from worker import child

child.be_the_server()
for _name in (
    "celery.bin.celery",
    "celery.apps.worker",
    "worker.cli",
    "worker.app",
    "worker.engine.image",
    "worker.engine.models",
    "worker.engine.runner",
    "worker.engine.warmup",
):
    importlib.import_module(_name)
gc.collect()
gc.freeze()
