"""Puts the table of settings into `docs/settings.md`, between its two marks."""

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
    """The settings as a table for `docs/settings.md`."""
    rows = ["| variable | default | range | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if name == "models":
            default = "the bundled model"
        shown = "" if default in (None, "", ()) else f"`{default}`" if name != "models" else default
        rows.append(f"| `SAG_{name.upper()}` | {shown} | {_range(field)} | {field.description} |")
    return "\n".join(rows)


def _range(field: FieldInfo) -> str:
    """What a number may be; nothing of what is none."""
    least = [str(each.ge) for each in field.metadata if hasattr(each, "ge")]
    most = [str(each.le) for each in field.metadata if hasattr(each, "le")]
    return " to ".join(least + most) if most else "".join(f"{each} or more" for each in least)


def renewed(text: str) -> str:
    """`text` with the table as the code has it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
