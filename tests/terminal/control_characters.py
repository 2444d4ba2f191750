"""Text that would command a terminal."""

from __future__ import annotations

CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
#: A window title by ESC and by C1, a forged line, and unbalanced markup.
EVIL = "[/x] [red]\x1b]0;owned\x07 \x9d0;owned\x9c \x00\x7f\rforged\n"


def unwanted(text: str) -> set[str]:
    """Control characters other than line ends."""
    return set(text) & set(CONTROLS) - {"\n"}
