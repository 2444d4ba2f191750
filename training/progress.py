"""Checkpoints and curves of a training stage: what makes it resume and what the card shows."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

LOG_EVERY = 50
SAVE_EVERY = 500
#: What torch's AveragedModel puts before the names of the weights that it averages.
AVERAGED = "module."


def cosine_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Learning rate at `step`: linear warm-up, then a half cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class Stage:
    """One stage's place on disk: its checkpoint, and its curve as JSON lines."""

    name: str
    work: Path
    _sums: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        """The file that the stage resumes from."""
        return self.work / f"{self.name}.ckpt"

    @property
    def curve(self) -> Path:
        """One JSON object for every `LOG_EVERY` steps: step, mean losses, seconds per step."""
        return self.work / f"{self.name}.curve.jsonl"

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the start; the curve is cut back to it."""
        if not self.checkpoint.exists():
            self.curve.unlink(missing_ok=True)
            return None
        state = self.state()
        kept = [row for row in self.rows() if row["step"] <= state["step"]]
        self.curve.write_text("".join(json.dumps(row) + "\n" for row in kept))
        return state

    def state(self) -> dict[str, Any]:
        """The last checkpoint; raises FileNotFoundError before the first."""
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        return state

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights of the last checkpoint, by their names in the model."""
        saved: dict[str, torch.Tensor] = self.state()["average"]
        return {
            name.removeprefix(AVERAGED): weight
            for name, weight in saved.items()
            if name.startswith(AVERAGED)
        }

    def rows(self) -> list[dict[str, float]]:
        """The curve so far: `step`, `seconds_per_step` and the stage's mean losses."""
        return [json.loads(line) for line in self.curve.read_text().splitlines()]

    def save(self, step: int, **state: object) -> None:
        """Write the checkpoint whole or not at all."""
        temporary = self.checkpoint.with_suffix(".part")
        torch.save({"step": step, **state}, temporary)
        temporary.replace(self.checkpoint)

    def log(self, step: int, **losses: float) -> None:
        """Add one step's losses; every `LOG_EVERY` steps their means go to the curve."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        if step % LOG_EVERY:
            return
        now = time.monotonic()
        row: dict[str, float] = {"step": step, "seconds_per_step": (now - self._since) / LOG_EVERY}
        row |= {name: total / LOG_EVERY for name, total in self._sums.items()}
        self._sums, self._since = {}, now
        with self.curve.open("a") as curve:
            curve.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
        print(self.name, json.dumps(row), flush=True)
