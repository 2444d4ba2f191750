"""The previous version: the last commit before the packages of `worker/` were introduced."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from api_contracts.events import EVENT, Event

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = "d0c8b27a5479cc6c21b7135e7fd9a2a3bf4bfeb1"


#: Fields of a result that the previous version ignores.
ADDED = ("dtype",)


def as_previous_reads(event: Event) -> Event:
    """An event without the fields that were added since."""
    fields = json.loads(event.model_dump_json())
    for name in ADDED:
        fields.get("result", {}).pop(name, None)
    return EVENT.validate_python(fields)


def git(*arguments: str) -> bytes | None:
    """What a git command prints; None when it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def archive() -> bytes | None:
    """The previous version's packages and model as a tar file.

    A shallow clone does not have the commit: then it is fetched from where the clone came from.
    """
    paths = (PREVIOUS, "api_contracts", "worker", "models")
    tree = git("archive", *paths)
    if tree is None and git("fetch", "--quiet", "--depth", "1", "origin", PREVIOUS) is not None:
        tree = git("archive", *paths)
    return tree


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the previous version's packages and its model."""
    tree = archive()
    if tree is None:
        why = f"commit {PREVIOUS[:7]} is not in this clone and can't be fetched: git fetch origin"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(tree)) as packed:
        packed.extractall(folder, filter="data")
    return folder
