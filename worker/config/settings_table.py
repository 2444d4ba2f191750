"""Writes the table of settings into `docs/settings.md`, between its two marks (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from worker.config.settings import Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def markdown_table() -> str:
    """Return the table: variable, default, range and meaning of each setting."""
    rows = ["| variable | default | range | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `SAG_{name.upper()}` | {_default(field)} | {_range(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the bundled model"
    value = field.default
    shown = value.get_secret_value() if isinstance(value, SecretStr) else value
    return "" if shown in (None, "", ()) else f"`{shown}`"


def _range(field: FieldInfo) -> str:
    """Return the bounds of a number; empty for anything else."""
    bounds = [getattr(each, name) for name in ("ge", "le") for each in field.metadata
              if hasattr(each, name)]  # fmt: skip
    return " to ".join(map(str, bounds)) if len(bounds) != 1 else f"{bounds[0]} or more"


def update(text: str) -> str:
    """Return a page with the table replaced by the current one."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(update(PAGE.read_text()))
