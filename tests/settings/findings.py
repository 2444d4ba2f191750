"""What `doctor` finds, of one name and of some models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.doctor.checks import check_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec
    from worker.config.settings import Settings
    from worker.doctor.finding import Finding


def the_one(findings: Iterator[Finding], what: str) -> Finding:
    (found,) = [each for each in findings if each.what == what]
    return found


def models(settings: Settings, **specs: ModelSpec) -> list[Finding]:
    """The findings about these models, each without a safety checker."""
    given = {k: each.model_copy(update={"safety_checker": False}) for k, each in specs.items()}
    return list(check_models(settings.model_copy(update={"models": given})))
