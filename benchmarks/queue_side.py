"""A program: fill a queue, or cancel waiting tasks, with the client of the checkout in PYTHONPATH.

`python queue_side.py URL fill NUMBER` or `... cancel NUMBER`; prints JSON. A file of its own, and
without this package's other modules, so that an earlier checkout can be measured, too.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from api_contracts import GenerationClient

#: Submitted by one call of `submit_many`.
BATCH = 500
REQUEST = {
    "prompt": "a large red circle on a white background",
    "seed": 7,
    "num_inference_steps": 25,
}


def main() -> None:
    """Do what the arguments say."""
    url, what, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with GenerationClient(url) as client:
        client.queue_depths()  # connects
        print(json.dumps({"fill": fill, "cancel": cancel}[what](client, number)))


def fill(client: GenerationClient, number: int) -> dict[str, float]:
    """Submit tasks with ids t0, t1, … of priorities 1 to 9, in turns."""
    began_s, used_s = time.perf_counter(), _cpu_s()
    for first in range(0, number, BATCH):
        ids = [f"t{each}" for each in range(first, min(first + BATCH, number))]
        client.submit_many([REQUEST | {"priority": 1 + hash(each) % 9} for each in ids], ids)
    return {"wall_s": time.perf_counter() - began_s, "cpu_s": _cpu_s() - used_s}


def cancel(client: GenerationClient, number: int) -> dict[str, list[float]]:
    """Cancel the tasks t0, t1, …; seconds of each call."""
    took = []
    for each in range(number):
        began_s = time.perf_counter()
        client.handle(f"t{each}").cancel()
        took.append(time.perf_counter() - began_s)
    return {"seconds": took}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
