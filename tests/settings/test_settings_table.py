"""The table of settings in the documents."""

from __future__ import annotations

from pathlib import Path

from worker.config import settings_table
from worker.config.settings import Settings
from worker.config.settings_table import markdown_table


def test_the_table_names_every_setting() -> None:
    """Each setting is a row with its meaning; no path of this machine is in it."""
    rows = markdown_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [
        f"SAG_{n.upper()}" for n in Settings.model_fields
    ]
    assert all(field.description for field in Settings.model_fields.values())
    assert not any(str(Path.home()) in row for row in rows)


def test_the_table_has_the_range_of_a_number() -> None:
    """The table has both bounds of a number or the lower one, and none for other settings."""
    rows = {row.split("`")[1]: row.split(" | ")[2] for row in markdown_table().splitlines()[2:]}
    assert rows["SAG_SLOTS"] == "1 to 64"
    assert rows["SAG_MAX_BATCH_ROWS"] == "1 to 1024"
    assert rows["SAG_MAX_MODELS"] == "1 or more"
    assert rows["SAG_S3_BUCKET"] == rows["SAG_COMPILE"] == ""


def test_the_page_has_the_current_table() -> None:
    """The table of settings in `docs/settings.md` is the one that `make docs` writes."""
    text = settings_table.PAGE.read_text()
    assert text.count(settings_table.BEGIN) == text.count(settings_table.END) == 1
    assert settings_table.update(text) == text


def test_the_table_replaces_only_itself() -> None:
    """The text around the marks stays; a second update changes nothing."""
    text = f"before\n{settings_table.BEGIN}\nstale row\n{settings_table.END}\nafter\n"
    once = settings_table.update(text)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "stale row" not in once
    assert settings_table.update(once) == once
