"""The programs in the documents, as they stand there, against a worker with its default names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import END_S

if TYPE_CHECKING:
    from tests.conftest import Service

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    pytest.param(text, id=f"{page}-{number}")
    for page in ("README.md", "docs/calling.md")
    for number, text in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_documented_program_runs(standard: Service, program: str) -> None:
    """Only Redis's address is another; its last line names the picture, or the end."""
    done = subprocess.run(
        [sys.executable, "-c", program.replace("redis://127.0.0.1:6379/0", standard.broker_url)],
        capture_output=True, text=True, check=False, timeout=END_S, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"/0\.png|succeeded$", done.stdout.splitlines()[-1]), done.stdout
