"""The Python programs in README and docs/calling.md, run against a worker with default names."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import fork_server
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
    """A documented program runs with only Redis's address replaced, and prints its result."""
    done = fork_server.run(
        [sys.executable, "-c", program.replace("redis://127.0.0.1:6379/0", standard.broker_url)],
        os.environ, cwd=ROOT, timeout_s=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"/0\.png|succeeded$", done.stdout.splitlines()[-1]), done.stdout
