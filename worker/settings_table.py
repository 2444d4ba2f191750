"""Puts the table of settings into `docs/settings.md`, between its two marks."""

from __future__ import annotations

from pathlib import Path

from worker.settings import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def renewed(text: str) -> str:
    """`text` with the table as the code has it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
