"""A fork server that imports nothing, and that dies over it where a file `broken` lies."""

import os
from pathlib import Path

from worker.supervisor import child_process

child_process.be_the_server()
if (Path(os.environ["STUBS"]) / "broken").exists():
    os._exit(1)
