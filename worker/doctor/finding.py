"""One result of `sag-worker doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    found: str
    #: What to do when it is not ok.
    fix: str = ""


def missing_extra(what: str, package: str) -> Finding:
    """Report that a package of the worker extra is not installed."""
    fix = 'install the worker extra: pip install "sag-worker[worker]"'
    return Finding(what, ok=False, found=f"{package} is not installed", fix=fix)
