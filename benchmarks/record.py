"""What a benchmark found and on which machine, as JSON. Knows no torch until it is asked."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter

_CPU_FILE = Path("/proc/cpuinfo")

Cell: TypeAlias = float | int | str | None


@dataclass(frozen=True)
class Machine:
    """Where and when a benchmark ran."""

    cpu: str
    #: Those that this process may use.
    cores: int
    torch_threads: int
    device: str
    #: Processes that wanted a core in the minute before: above 0 others may have disturbed it.
    load_before: float
    python: str
    torch: str
    diffusers: str
    transformers: str
    date_utc: str

    @property
    def line(self) -> str:
        """The machine in one line, for captions."""
        what = f"{self.cpu}, {self.cores} cores"
        if self.device != "cpu":
            what = f"{self.device} · {what}"
        libraries = (
            f"torch {self.torch} (threads: {self.torch_threads}) · diffusers {self.diffusers}"
        )
        return f"{what} · {libraries} · {self.date_utc[:10]}"


@dataclass(frozen=True)
class Result:
    """A benchmark's result: one row for each point, columns with their units in their names."""

    name: str
    title: str
    #: The finding in one sentence.
    headline: str
    model: str
    machine: Machine
    #: The options that it ran with.
    options: dict[str, Cell]
    rows: list[dict[str, Cell]]


_JSON = TypeAdapter(Result)


def machine(device: str) -> Machine:
    """This machine, now; `device` as torch names it."""
    import torch  # noqa: PLC0415  # seconds, not wanted by `report`

    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        torch_threads=torch.get_num_threads(),
        device="cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        load_before=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=version("torch"),
        diffusers=version("diffusers"),
        transformers=version("transformers"),
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def options(**given: object) -> dict[str, Cell]:
    """Options as cells: lists as text, everything else as it is."""
    return {
        name: value if isinstance(value, float | int | str | None) else _text(value)
        for name, value in given.items()
    }


def rounded(value: float) -> float:
    """Four significant digits: more would say more than was measured."""
    return float(f"{value:.4g}")


def save(result: Result, out: Path) -> Path:
    """Write `<name>.json` into `out`; gives its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{result.name}.json"
    path.write_bytes(_JSON.dump_json(result, indent=2) + b"\n")
    return path


def load(path: Path) -> Result:
    """A saved result."""
    return _JSON.validate_json(path.read_bytes())


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or None
    return str(value)


def _cpu() -> str:
    """The processor's name."""
    if _CPU_FILE.exists():
        for line in _CPU_FILE.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
