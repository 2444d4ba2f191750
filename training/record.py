"""How a training run went: machine, data and curves, kept beside the weights for the card.

Owns `training.json` in the exported folder and `run.json` in the work folder.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from training.dataset import captions
from training.progress import LOG_EVERY, Stage

FILE = "training.json"
RUN_FILE = "run.json"
STAGES = ("vae", "denoiser")
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers")
CPU_FILE = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Run:
    """The seed of a run and where it ran, written when it starts."""

    seed: int
    cpu: str
    cores: int
    libraries: dict[str, str]


@dataclass(frozen=True)
class Curve:
    """A stage's means over every `LOG_EVERY` steps: step, seconds_per_step and its losses."""

    stage: str
    rows: list[dict[str, float]]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.rows[-1]["step"])

    @property
    def minutes(self) -> float:
        """Time taken, on the clock."""
        return sum(row["seconds_per_step"] for row in self.rows) * LOG_EVERY / 60


@dataclass(frozen=True)
class Record:
    """A finished run, and how many pictures it learned from."""

    run: Run
    pictures: int
    distinct_captions: int
    curves: list[Curve]


RUN_FORMAT = TypeAdapter(Run)
FORMAT = TypeAdapter(Record)


def begin(work: Path, seed: int) -> Run:
    """Note seed and machine in `work` the first time; raises ValueError for a second seed."""
    file = work / RUN_FILE
    if not file.exists():
        libraries = {name: version(name) for name in LIBRARIES}
        run = Run(seed, _cpu(), os.cpu_count() or 1, libraries)
        file.write_bytes(RUN_FORMAT.dump_json(run, indent=2) + b"\n")
    run = RUN_FORMAT.validate_json(file.read_bytes())
    if run.seed != seed:
        message = f"{work} holds a run of seed {run.seed}; give {seed} a folder of its own"
        raise ValueError(message)
    return run


def write(work: Path, run: Run, out: Path) -> None:
    """Gather the run in `work` into `training.json` in `out`."""
    drawn = captions(work)
    curves = [Curve(stage, Stage(stage, work).rows()) for stage in STAGES]
    save(out, Record(run, len(drawn), len(set(drawn)), curves))


def save(out: Path, record: Record) -> None:
    """Write a run to `training.json` in `out`."""
    (out / FILE).write_bytes(FORMAT.dump_json(record) + b"\n")


def read(out: Path) -> Record:
    """The record in `out`; raises FileNotFoundError when there is none."""
    return FORMAT.validate_json((out / FILE).read_bytes())


def _cpu() -> str:
    """The processor's name as its system gives it."""
    if CPU_FILE.exists():
        for line in CPU_FILE.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
