"""What `doctor` tells: one thing that was looked at, and its fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` says what to do when it is not well."""

    what: str
    ok: bool
    found: str
    fix: str = ""


def no_extra(what: str, package: str) -> Finding:
    """What is told where only a caller's packages are installed."""
    fix = 'install the worker extra: pip install "sag-worker[worker]"'
    return Finding(what, ok=False, found=f"{package} is not installed", fix=fix)
