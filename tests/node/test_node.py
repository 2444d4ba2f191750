"""The Node example with its npm packages, and AsyncAPI's own parser on our document."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import END_S, check_events

if TYPE_CHECKING:
    from tests.conftest import Service

ROOT = Path(__file__).resolve().parents[2]
#: Time for npm to fetch the packages of the lock file, in seconds.
INSTALL_S = 170

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


def npm(
    folder: Path, *arguments: str, timeout_s: float = END_S, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["npm", *arguments], cwd=folder, env={**os.environ, **environment},
        capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, in a copy of the folders that it needs."""
    root = tmp_path_factory.mktemp("node")
    folder = root / "examples" / "node"
    ignored = shutil.ignore_patterns("node_modules", "contract")
    shutil.copytree(ROOT / "examples" / "node", folder, ignore=ignored)
    shutil.copytree(ROOT / "api_contracts" / "schema", root / "api_contracts" / "schema")
    done = npm(folder, "ci", "--no-audit", "--no-fund", timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(INSTALL_S + 60)
def test_asyncapis_parser_accepts_the_document(example: Path) -> None:
    """AsyncAPI's parser accepts the published document, and refuses one without a channel."""
    done = npm(example, "run", "--silent", "asyncapi")
    assert done.returncode == 0, done.stderr
    channels = [line.split()[0] for line in done.stdout.splitlines()]
    assert channels == ["tasks", "events", "replies", "webhooks", "control"]
    document = example.parents[1] / "api_contracts" / "schema" / "v1" / "asyncapi.json"
    broken = json.loads(document.read_text())
    del broken["channels"]["tasks"]
    document.with_name("broken.json").write_text(json.dumps(broken))
    script = ["exec", "--", "node", "src/asyncapi.mjs", str(document.with_name("broken.json"))]
    assert npm(example, *script).returncode == 1


@pytest.mark.timeout(INSTALL_S + 60)
def test_the_example_makes_a_picture(example: Path, standard: Service) -> None:
    """The example's types are generated and type-check, and a real worker makes its picture."""
    for step in ("types", "check"):
        done = npm(example, "run", "--silent", step)
        assert done.returncode == 0, done.stdout + done.stderr
    prompt = "a green ring on a black background"
    url = standard.broker_url
    done = npm(example, "start", "--silent", "--", prompt, SAG_BROKER_URL=url)
    assert done.returncode == 0, done.stderr
    *steps, picture = done.stdout.splitlines()
    assert steps[-1] == "5 of 5"
    task_id = picture.split("/0.png")[0].rpartition("/")[2]
    events = list(standard.client.handle(task_id).events(timeout=END_S))
    check_events(events)
    assert events[-1].metadata == {"from": "node"}


@pytest.mark.timeout(INSTALL_S + 60)
def test_the_example_reports_a_refusal(example: Path, standard: Service) -> None:
    """The example prints the reason of a refused request and ends with status 1."""
    url = standard.broker_url
    done = npm(example, "start", "--silent", "--", "x" * 2001, SAG_BROKER_URL=url)
    assert done.returncode == 1
    assert "prompt" in done.stderr
