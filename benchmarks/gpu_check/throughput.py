"""Part: pictures a second with tasks waiting, the engine against upstream's loop."""

from __future__ import annotations

import inspect
import time
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks import bare, upstream
from benchmarks.gpu_check import given
from worker.engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bare import BareEngine
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from benchmarks.tasks import Task

#: The option of the engine that replays CUDA graphs; an engine without it is measured eagerly only.
GRAPHS = "graphs"
WARM_STEPS = 2
#: Pixels and waiting tasks.
Point: TypeAlias = tuple[int, int]
#: Where the goal is measured, and the headline's fallback in the rehearsal.
GOAL_COUNT = 16


def run(setting: Setting, found: Finding) -> None:
    """Measure each mode that this engine has."""
    modes: dict[str, dict[str, Any]] = {"eager": {}}
    if setting.on_gpu and GRAPHS in inspect.signature(Engine.__init__).parameters:
        modes["graphs"] = {GRAPHS: True}
    elif setting.on_gpu:
        found.note("CUDA graphs: this engine has no such option, so they are not there to measure.")
    else:
        found.note("CUDA graphs: only on a GPU.")
    found.note(
        f"Each picture: {setting.steps} steps, guidance {given.GUIDANCE_SCALE:g}, SAG 0.75. "
        f"Upstream's loop is timed over at most {setting.loop_pictures} pictures."
    )
    model = setting.sd15()
    points = [(setting.size_px, count) for count in setting.counts]
    points.append((setting.large_px, setting.large_count))
    loop = _Loop(setting, upstream.load(model))
    for mode, options in modes.items():
        with bare.engine(model, max_batch_rows=setting.max_batch_rows, **options) as engine:
            for point in points:
                _point(setting, found, mode, point, (engine, loop))


def _point(
    setting: Setting,
    found: Finding,
    mode: str,
    point: Point,
    sides: tuple[BareEngine, _Loop],
) -> None:
    """The sides in turns, each after a short run that is not timed."""
    (size_px, count), (engine, loop) = point, sides
    tasks = given.make(setting, count, setting.steps, size_px)
    engine.results(given.make(setting, count, WARM_STEPS, size_px))
    loop.begin(point)
    speeds = []
    for _ in range(setting.turns):
        began_s = time.perf_counter()
        results = engine.results(tasks)
        speeds.append(count / (time.perf_counter() - began_s))
        loop.turn(point, tasks)
    theirs = loop.pictures[point]
    ours = [result.images[0].pixels for result in results]
    ratio = max(speeds) / loop.speed(point)
    found.row(
        mode=mode,
        px=size_px,
        waiting=count,
        engine_pictures_per_s=max(speeds),
        lowest_turn=min(speeds),
        loop_pictures_per_s=loop.speed(point),
        times_the_loop=ratio,
        jobs_in_a_step=mean(result.batch for result in results),
        difference_of_255=mean(map(_difference, ours[: len(theirs)], theirs)),
    )
    if size_px == setting.size_px:
        _numbers(found, mode, count, max(speeds), ratio)


def _numbers(found: Finding, mode: str, count: int, speed: float, ratio: float) -> None:
    found.number(f"{mode}_pictures_per_s_at_{count}", speed)
    found.number(f"{mode}_times_the_loop_at_{count}", ratio)
    found.number(f"{mode}_pictures_per_s", speed)  # the last, of the most tasks, stays
    if count <= GOAL_COUNT:
        found.headline(
            f"{speed:.3g} pictures a second with {count} waiting ({mode}), {ratio:.2f} times "
            "upstream's loop."
        )


class _Loop:
    """Upstream's pipeline, one task after the other; timed with the first mode only."""

    def __init__(self, setting: Setting, pipeline: Any) -> None:  # noqa: ANN401  # a diffusers pipeline
        self._setting, self._pipeline = setting, pipeline
        self._speeds: dict[Point, list[float]] = {}
        #: Of the last turn.
        self.pictures: dict[Point, list[Any]] = {}

    def begin(self, point: Point) -> None:
        """A short run of a size that it has not had."""
        if point not in self._speeds:
            self._run(given.make(self._setting, 1, WARM_STEPS, point[0]))

    def turn(self, point: Point, tasks: Sequence[Task]) -> None:
        """Time a few of the tasks, if this point wants more turns."""
        speeds = self._speeds.setdefault(point, [])
        if len(speeds) < self._setting.turns:
            speed, self.pictures[point] = self._run(tasks[: self._setting.loop_pictures])
            speeds.append(speed)

    def speed(self, point: Point) -> float:
        """Pictures a second in the best turn."""
        return max(self._speeds[point])

    def _run(self, tasks: Sequence[Task]) -> tuple[float, list[Any]]:
        began_s = time.perf_counter()
        images = [upstream.pictures(self._pipeline, [task])[0] for task in tasks]
        return len(tasks) / (time.perf_counter() - began_s), images


def _difference(one: Any, other: Any) -> float:  # noqa: ANN401  # images
    """Mean absolute difference of two pictures' values, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())
