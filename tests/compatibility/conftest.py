"""The previous version: the last tag's; until there is one, from before `reply_to` was there."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("api_contracts", "worker", "models")


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the previous version's packages and its model."""
    tag = git("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
    news = git("log", "-S", "reply_to: ReplyTo", "--format=%H", "--", "api_contracts/request.py")
    before = f"{news.decode().split()[-1]}^" if news else "HEAD"
    version = tag or before
    # The model moved from `models/` into `worker/`: git refuses a path that the version lacks.
    parts = git("ls-tree", "--name-only", version, *PARTS).decode().split()
    tree = git("archive", version, *parts) if parts else b""
    if not tree:
        pytest.skip("no history here: a clone with --depth 1, or no git")
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(tree)) as archive:
        archive.extractall(folder, filter="data")
    return folder
