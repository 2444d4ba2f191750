"""What the dashboard shows of a run: its panels, drawn from a real Prometheus.

A worker and an exporter on this machine, tasks in waves, and one kill of the worker process. It
measures nothing: the picture shows what the panels look like.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from api_contracts import GenerationClient, GenerationError
from benchmarks import process, prometheus, record, service
from worker import embedded

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.prometheus import Prometheus, Query
    from benchmarks.service import Servers

#: Panels of the dashboard, in the order in which they are drawn, and their stacked ones.
PANELS = (
    "Where tasks are", "Backlog and workers", "Outcomes",
    "Wait in the queue", "Time to the first step", "Time to success",
    "Stages of a task", "UNet step", "Rows in a UNet call",
)  # fmt: skip
STACKED = frozenset({"Outcomes", "Stages of a task"})
COLUMNS = 3
#: Units of the dashboard as the axes have them.
UNITS = {"ops": "a second", "s": "seconds", "short": ""}
SIZE_PX, DPI = (1200, 900), 100
COLOURS = ("#1b4fd6", "#d9822b", "#2f9e6e", "#8e4ec6", "#0f8b8d", "#5c6670")
#: Of series that mean the same in every panel.
OWN_COLOURS = {
    "failed": "#c0392b", "succeeded": "#2f9e6e", "requeued": "#d9822b", "slots": "#9aa5b1",
    "queued": "#cbd2d9", "denoise": "#1b4fd6", "decode": "#8e4ec6", "workers": "#9aa5b1",
}  # fmt: skip
#: Colours of the file: it stays small.
PALETTE = 96
TEXT, MUTED, FAINT = "#1f2933", "#66707a", "#e4e7eb"
PROMPT = "a large red circle on a white background"
#: Tasks that are sent at a time, in seconds from the start; and when the process is killed.
WAVES = {5: 6, 25: 24, 70: 6, 85: 16}
KILL_S = 45
SLOTS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long."""
    parser.add_argument("--seconds", type=int, default=140, help="length of the run")


def run(arguments: argparse.Namespace) -> None:
    """Run and draw `monitoring.png`."""
    metrics_port, exporter_port = embedded.free_ports(2)
    targets = {
        "sag-worker": f"{embedded.LOOPBACK}:{metrics_port}",
        "sag-exporter": f"{embedded.LOOPBACK}:{exporter_port}",
    }
    program = [sys.executable, "-m", "worker"]
    exporter = [*program, "exporter", "--host", embedded.LOOPBACK, "--port", str(exporter_port)]
    with service.servers() as servers:
        environment = _environment(servers, metrics_port)
        log = servers.folder / "exporter.log"
        with (
            service.worker(servers, "daemon", [*program, "run"], environment) as daemon,
            embedded.running(exporter, log, lambda: "serving" in log.read_text(), environment),
            prometheus.running(servers.folder, targets) as server,
            GenerationClient(servers.redis_url) as client,
        ):
            client.submit({"prompt": PROMPT, "num_inference_steps": 1}).result(service.STOP_S)
            began_s = time.time()
            _load(client, daemon.process.pid, arguments.seconds)
            drawn = _draw(server, began_s, time.time())
    path: Path = arguments.out / "monitoring.png"
    machine = process.once("torch", record.machine, "cpu")
    drawn.supxlabel(
        f"time since the start; {SLOTS} slots, waves of {', '.join(map(str, WAVES.values()))} tasks"
        f" of 25 steps, the process killed at {_minutes(KILL_S)}\n{machine.line}",
        fontsize=8, color=MUTED,
    )  # fmt: skip
    file = io.BytesIO()
    drawn.savefig(file, dpi=DPI)
    Image.open(file).convert("RGB").quantize(PALETTE).save(path, optimize=True)
    print(path)


def _environment(servers: Servers, metrics_port: int) -> dict[str, str]:
    return {
        "SAG_BROKER_URL": servers.redis_url,
        "SAG_S3_ENDPOINT_URL": servers.s3.endpoint_url,
        "SAG_S3_BUCKET": service.BUCKET,
        "SAG_DEVICE": "cpu",
        "SAG_SLOTS": str(SLOTS),
        "SAG_DRAIN_TIMEOUT_S": "1",
        "SAG_METRICS_PORT": str(metrics_port),
    }


@dataclass
class _Due:
    """What is left to do of `WAVES` and the kill."""

    waves: dict[int, int]
    is_killed: bool = False


def _load(client: GenerationClient, supervisor_pid: int, seconds: int) -> None:
    """Send the waves, kill the worker process once, and wait until the end."""
    began_s, due = time.monotonic(), _Due(dict(WAVES))
    while (now_s := time.monotonic() - began_s) < seconds:
        for at_s in [at_s for at_s in due.waves if at_s <= now_s]:
            for number in range(due.waves.pop(at_s)):
                client.submit({"prompt": PROMPT, "seed": number})
            with suppress(GenerationError):  # one that is refused, for the panel of outcomes
                client.submit({"prompt": PROMPT, "scheduler": "nope"})
        if now_s >= KILL_S and not due.is_killed:
            due.is_killed = True
            os.kill(_busiest(supervisor_pid), signal.SIGKILL)
        time.sleep(0.2)


def _busiest(supervisor_pid: int) -> int:
    """The worker process: of the supervisor's descendants the one that has computed most."""
    found = psutil.Process(supervisor_pid).children(recursive=True)
    pid: int = max(found, key=lambda each: sum(each.cpu_times()[:2])).pid
    return pid


def _draw(server: Prometheus, start_s: float, end_s: float) -> Figure:
    panels = json.loads(prometheus.DASHBOARD.read_text())["panels"]
    units = {panel["title"]: panel["fieldConfig"]["defaults"]["unit"] for panel in panels
             if "fieldConfig" in panel}  # fmt: skip
    queries = prometheus.dashboard_queries()
    drawn = Figure((SIZE_PX[0] / DPI, SIZE_PX[1] / DPI), dpi=DPI, layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]  # the constrained one's
    axes = drawn.subplots(len(PANELS) // COLUMNS, COLUMNS, sharex=True).flat
    for each, title in zip(axes, PANELS, strict=True):
        own = [query for query in queries if query.panel == title]
        _panel(each, title, UNITS[units[title]], own, (server, start_s, end_s))
    return drawn


def _panel(
    axes: Axes, title: str, unit: str, queries: Sequence[Query],
    source: tuple[Prometheus, float, float],
) -> None:  # fmt: skip
    server, start_s, end_s = source
    found = [
        (query.named(labels), points)
        for query in queries
        for labels, points in server.query_range(query.runnable, start_s, end_s)
        if any(value > 0 for _, value in points)
    ]
    found = [(name.partition("127.0.0.1")[0].strip() or "worker", points) for name, points in found]
    if title in STACKED:
        grid = [start_s + second for second in range(int(end_s - start_s))]
        values = [_on(grid, points) for _, points in found]
        axes.stackplot(
            [at - start_s for at in grid], values, labels=[name for name, _ in found],
            colors=_colours([name for name, _ in found]), alpha=0.85, linewidth=0,
        )  # fmt: skip
    else:
        colours = _colours([name for name, _ in found])
        for colour, (name, points) in reversed(list(zip(colours, found, strict=True))):
            at = [moment - start_s for moment, _ in points]
            axes.plot(at, [value for _, value in points], label=name, color=colour, linewidth=1.4)
    axes.axvline(KILL_S, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_title(title, loc="left", fontsize=10, color=TEXT, fontweight="bold", pad=22)
    axes.set_title(unit, loc="right", fontsize=8, color=MUTED, pad=22)
    axes.set_xlim(0, end_s - start_s)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 3, 6]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _minutes(value)))
    legend = axes.legend(
        *(list(reversed(each)) if title not in STACKED else each
          for each in axes.get_legend_handles_labels()),
        fontsize=8, frameon=False, labelcolor=TEXT, loc="lower left", bbox_to_anchor=(-0.02, 0.99),
        ncols=6, handlelength=0.9, handletextpad=0.4, columnspacing=1.0, borderaxespad=0.1,
    )  # fmt: skip
    legend.set_in_layout(False)  # all panels are of one size


def _colours(names: Sequence[str]) -> list[str]:
    own = {name: OWN_COLOURS[name] for name in names if name in OWN_COLOURS}
    others = iter(colour for colour in COLOURS if colour not in own.values())
    return [own.get(name) or next(others) for name in names]


def _on(grid: Sequence[float], points: Sequence[tuple[float, float]]) -> list[float]:
    """A series at the moments of a grid; 0 where it has no point, or none that is a number."""
    known = {round(at): value for at, value in points if value == value}  # noqa: PLR0124  # not NaN
    return [known.get(round(at), 0.0) for at in grid]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
