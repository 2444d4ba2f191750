"""What `pip install sag-worker` gives: the files, the demo, a typed client without torch."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.packaging.conftest import build
from tests.packaging.environments import COMMAND_S, INSTALL_S, ROOT
from worker import embedded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.packaging.conftest import Distributions
    from tests.packaging.environments import Environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_S + COMMAND_S)]

PACKAGES = ("api_contracts", "worker")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXPORT = """
import sys

from worker.config.settings import Settings
from worker.exporter import server
from worker.exporter.pool_status import PoolReader

status = PoolReader(Settings(broker_url=sys.argv[1])).read()
print(status.backlog, status.workers_well)
"""
CLIENT = """
from api_contracts import GenerationClient, GenerationFailed, GenerationRequest, TaskHandle


def seeds(client: GenerationClient, prompts: list[str]) -> dict[str, int]:
    tasks: list[TaskHandle] = client.submit_many([GenerationRequest(prompt=p) for p in prompts])
    found: dict[str, int] = {}
    for task in tasks:
        for event in task.events(timeout=60):
            if event.type == "progress":
                print(event.step / event.total_steps)
        try:
            found[task.task_id] = task.result(timeout=10).images[0].seed
        except GenerationFailed as failed:
            print(failed.error.code, failed.error.retryable)
    return found
"""
SUBMIT = """
import importlib.util, sys
from api_contracts import GenerationClient

assert importlib.util.find_spec("torch") is None
with GenerationClient(sys.argv[1]) as client:
    print(client.submit({"prompt": "a red circle"}).status().value, client.queue_depths())
"""


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def strictly(environment: Environment, program: str) -> subprocess.CompletedProcess[str]:
    """Type-check a program against the packages of an environment."""
    file = environment.folder / "program.py"
    file.write_text(program)
    python = environment.path / "bin" / "python"
    return subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--strict", "--config-file=", "--no-incremental",
         "--python-executable", str(python), file.name],
        cwd=environment.folder, capture_output=True, text=True, check=False, timeout=COMMAND_S,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_the_wheel_has_every_file_of_the_packages(distributions: Distributions) -> None:
    """Modules, Lua scripts, schemas, py.typed and the model are in the wheel; nothing else is."""
    expected = {
        file.relative_to(ROOT).as_posix(): file.read_bytes()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    found = wheel_files(distributions.wheel)
    assert {name for name in found if ".dist-info/" not in name} == set(expected)
    assert all(found[name] == content for name, content in expected.items())
    suffixes = {name.rpartition(".")[2] for name in expected}
    assert {"py", "lua", "json", "typed", "safetensors"} <= suffixes


def test_the_metadata_is_that_of_the_project(distributions: Distributions) -> None:
    """The wheel has the version of pyproject.toml, and the extras `worker`, `otel` and `demo`."""
    files = wheel_files(distributions.wheel)
    (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(files[name])
    assert metadata["Version"] == PROJECT["version"]
    assert metadata.get_all("Provides-Extra") == ["demo", "otel", "worker"]


def test_the_sdist_builds_the_same_wheel(distributions: Distributions, tmp_path: Path) -> None:
    """The wheel built from the sdist has the same bytes as the one built from the checkout."""
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    build(tree, tmp_path / "again", "wheel")
    again = tmp_path / "again" / distributions.wheel.name
    assert wheel_files(again) == wheel_files(distributions.wheel)
    assert again.read_bytes() == distributions.wheel.read_bytes()


def test_the_demo_runs_from_an_empty_folder(service: Environment) -> None:
    """`sag-worker demo` of an installed wheel makes a picture; no checkout is needed."""
    where = service.run("python", "-c", "import worker; print(worker.__file__)")
    assert where.stdout.startswith(str(service.path)), where.stderr
    done = service.run("sag-worker", "demo", "--prompt", "a large red star on a blue background")
    assert done.returncode == 0, done.stderr
    with Image.open(service.folder / done.stdout.splitlines()[-1]) as sheet:
        assert sheet.width > 256


def test_a_client_is_checked_strictly(caller: Environment) -> None:
    """A client program passes `mypy --strict`, which knows the types that it uses."""
    done = strictly(caller, CLIENT)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = strictly(caller, CLIENT.replace("dict[str, int]", "dict[str, bytes]"))
    assert 'expression has type "int", target has type "bytes"' in wrong.stdout


def test_the_exporter_needs_no_extra(caller: Environment, tmp_path: Path) -> None:
    """The exporter reads a pool and has its command without extras."""
    with embedded.redis_server(tmp_path) as url:
        done = caller.run("python", "-c", EXPORT, url)
    assert (done.returncode, done.stdout) == (0, "0.0 0\n"), done.stderr
    done = caller.run("sag-worker", "exporter", "--help")
    assert done.returncode == 0, done.stderr


def test_a_caller_needs_no_torch(caller: Environment, tmp_path: Path) -> None:
    """Without extras the client imports and submits, and torch is not installed."""
    with embedded.redis_server(tmp_path) as url:
        done = caller.run("python", "-c", SUBMIT, url)
    assert (done.returncode, done.stdout) == (0, "queued {'default': 1}\n"), done.stderr
