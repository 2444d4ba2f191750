"""docs/parameters.md has a row for everything that upstream's pipeline takes, and no empty cell."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import diffusers
from diffusers.schedulers import KarrasDiffusionSchedulers

from worker.engine.sampling.samplers import SAMPLERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"


def rows() -> dict[str, list[str]]:
    """The cells of each row beside the first, by each name in code style in that one."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("|") and not line.startswith("|--"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", first) or [first], others)
    return found


def test_every_parameter_has_a_row() -> None:
    """Each parameter of the pipeline's call and constructor is in the first column of a row."""
    kind = diffusers.StableDiffusionSAGPipeline
    for method in (kind.__call__, kind.__init__):
        names = set(inspect.signature(method).parameters) - {"self"}
        assert names - rows().keys() == set()


def test_every_method_for_users_has_a_row() -> None:
    """Each method that loads, unloads, enables or fuses is in the first column of a row."""
    has = {re.split(r"\W", name)[0] for name in rows()}
    for kind in (diffusers.StableDiffusionSAGPipeline, diffusers.StableDiffusionPipeline):
        wanted = re.compile(r"(load|unload|enable|fuse|from)_(?!config)|set_adapters")
        assert {name for name in dir(kind) if wanted.match(name)} - has == set()


def test_every_scheduler_has_a_row() -> None:
    """Each class of the enumeration has a row with the names by which it is served."""
    for kind in KarrasDiffusionSchedulers:
        names = {name for name, each in SAMPLERS.items() if each.class_name == kind.name}
        assert set(re.findall(r"`([^`]+)`", rows()[kind.name][0])) == names
        assert names or rows()[kind.name][0] == "refused"


def test_no_cell_is_empty() -> None:
    """Each row says where a thing is, and what differs or why it is not there."""
    for name, others in rows().items():
        assert len(others) == 2, name
        assert all(others), name
