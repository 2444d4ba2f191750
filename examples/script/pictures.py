"""Several pictures from a plain script: submit, follow, save. Status 0 when all are there.

SAG_BROKER_URL=redis://127.0.0.1:6379/0 python pictures.py "a green ring on a black background"
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.request import urlopen

from api_contracts import GenerationClient, GenerationError, TaskHandle

FOLDER = Path("pictures")
#: Longest silence of a task, in seconds. One that waits for its turn is silent.
SILENCE_S = 600
PROMPTS = [
    "a large red circle on a white background",
    "a green ring on a black background",
    "a large red star on a blue background",
]


def main(prompts: list[str]) -> int:
    """Make a picture of each prompt; gives the exit status."""
    url = os.environ.get("SAG_BROKER_URL", "redis://127.0.0.1:6379/0")
    requests = [{"prompt": prompt, "callback_steps": 5} for prompt in prompts]
    missing = 0
    with GenerationClient(url, namespace=os.environ.get("SAG_NAMESPACE", "sag")) as client:
        try:
            tasks = client.submit_many(requests)
        except GenerationError as error:  # invalid, or Redis is away
            print(f"not submitted: {error}")
            return 1
        for task, prompt in zip(tasks, prompts, strict=True):
            print(f"{task.task_id} submitted: {prompt}", flush=True)
        for task in tasks:  # all run at once; events are kept, so none is missed
            try:
                follow(task)
                print(f"{task.task_id} saved: {save(task)}", flush=True)
            except (GenerationError, OSError) as error:  # an end without pictures, or a download
                print(f"{task.task_id} {type(error).__name__}: {error}", flush=True)
                missing += 1
    return 1 if missing else 0


def follow(task: TaskHandle) -> None:
    """Print what happens until the task ends."""
    for event in task.events(timeout=SILENCE_S):
        steps = f" {event.step} of {event.total_steps}" if event.type == "progress" else ""
        print(f"{task.task_id} {event.type}{steps}", flush=True)


def save(task: TaskHandle) -> Path:
    """Fetch the picture of a task that has ended; raises its error if it has none."""
    image = task.result(timeout=10).images[0]
    if image.url is None:
        raise OSError(f"no URL for {image.key}: the worker runs with SAG_PRESIGN_S=0")
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{task.task_id}.png"
    with urlopen(image.url, timeout=60) as answer:  # noqa: S310  # the worker's own URL
        path.write_bytes(answer.read())
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or PROMPTS))
