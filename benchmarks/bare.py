"""The engine alone in this process: no queue, no record, no files."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from worker.engine.engine import Engine
from worker.job_control import Control, Step, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from benchmarks.model import Model
    from benchmarks.tasks import Task
    from worker.engine.jobs.job import JobResult


class BareEngine:
    """An engine with the model resident on its device."""

    def __init__(self, model: Model, offload: str = "none", **options: Any) -> None:  # noqa: ANN401  # the engine's own
        """`options` are those of `Engine`."""
        self._engine = Engine({"default": model.spec}, model.device, offload, **options)
        self._controls: list[Control] = []

    def submit(
        self, task: Task, on_step: Callable[[Step], None] = lambda _: None
    ) -> Future[JobResult]:
        """Submit one task; `on_step` is called after each of its steps."""
        control = Control(on_step=on_step)
        self._controls.append(control)
        return self._engine.submit(task.job(), control)

    def results(self, tasks: Sequence[Task], at_once: int | None = None) -> list[JobResult]:
        """Submit tasks together, or never more than `at_once` unfinished; gives what they gave."""
        room = threading.Semaphore(at_once or len(tasks))
        futures = []
        for task in tasks:
            room.acquire()
            futures.append(self.submit(task))
            futures[-1].add_done_callback(lambda _: room.release())
        return [future.result() for future in futures]

    def close(self) -> None:
        """Stop what still runs, after an error or an interrupt, and end the thread."""
        for control in self._controls:
            control.request(Stop.CANCELLED)
        self._engine.close()


@contextmanager
def engine(model: Model, offload: str = "none", **options: Any) -> Iterator[BareEngine]:  # noqa: ANN401  # the engine's own
    """A bare engine, closed on leaving; `options` are those of `Engine`."""
    started = BareEngine(model, offload, **options)
    try:
        yield started
    finally:
        started.close()
