"""`guarded.py FOLDER`: starts servers and awkward processes, and waits to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from worker import embedded

FOLDER = Path(sys.argv[1])
#: Two generations below, in sessions of their own, and their parent has exited.
ORPHANS = "setsid sleep 600 & setsid sh -c 'sleep 600; true' & exit"


def main() -> None:
    """Start them and say so."""
    with embedded.redis_server(FOLDER):
        subprocess.run(["sh", "-c", ORPHANS], check=True)
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", deaf])
        frozen = subprocess.Popen(["sleep", "600"])
        frozen.send_signal(signal.SIGSTOP)
        thread = threading.Thread(target=subprocess.Popen, args=(["sleep", "600"],))
        thread.start()
        thread.join()
        print("ready", os.getpid(), flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
