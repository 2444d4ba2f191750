"""Imports what the parts need, in the server that they are forked from: seconds, once.

Nothing here may touch CUDA: a forked process could not use it.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

for _name in (
    "torch",
    "benchmarks.bare",
    "benchmarks.upstream",
    "benchmarks.sd15",
    "worker.engine.runner",
    "worker.engine.loading.model_loader",
):
    with suppress(Exception):  # the part that needs it says what is wrong
        importlib.import_module(_name)
