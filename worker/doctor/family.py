"""Whether the settings of a model are those of its family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from worker.doctor.finding import Finding
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec

#: Settings that every family has.
_OF_ALL = frozenset(
    {"path", "config", "variant", "dtype", "safety_checker", "sag_layer", "defaults"}
)


def check_family(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """Report settings that the family of a model on this machine does not have."""
    if spec.model_dump(exclude_defaults=True).keys() <= _OF_ALL:
        return  # without importing torch
    from worker.engine.families.served import family_of  # noqa: PLC0415  # takes seconds to import
    from worker.engine.loading import hub  # noqa: PLC0415  # imports the hub's client

    try:
        family = family_of(Path(hub.source(hub.config_of(spec))))
    except (OSError, ModelLoadError):
        return  # which the check of its path reports
    for name in family.unsupported(spec):
        fix = f"remove {name} from the model in SAG_MODELS"
        found = f"is a {family.title} model, which takes no `{name}`"
        yield Finding(what, ok=False, found=found, fix=fix)
