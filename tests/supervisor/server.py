"""A fork server that imports nothing, and dies where a file `broken` exists."""

import os
from pathlib import Path

from worker.supervisor import child_process

child_process.become_fork_server()
if (Path(os.environ["STUBS"]) / "broken").exists():
    os._exit(1)
