"""The wheel and the sdist of this tree, and environments with the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.packaging import environments
from tests.packaging.environments import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.packaging.environments import Environment

#: `linked` takes seconds, `downloaded` takes minutes and needs the package index.
WAYS = ["linked", pytest.param("downloaded", marks=pytest.mark.nightly)]
WAYS_BY_NAME = {"linked": environments.linked, "downloaded": environments.downloaded}


@dataclass(frozen=True)
class Distributions:
    """The two files that a release publishes."""

    wheel: Path
    sdist: Path


def build(tree: Path, out: Path, *targets: str) -> None:
    """Build distributions of a source tree into `out`; the backend alone, without isolation."""
    options = [part for target in targets for part in ("--target", target)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(out), *options],
        cwd=tree, check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Wheel and sdist, built from this tree."""
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out, "sdist", "wheel")
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Distributions(wheel, sdist)


@pytest.fixture(scope="session", params=WAYS)
def service(
    request: pytest.FixtureRequest,
    distributions: Distributions,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Environment]:
    """`sag-worker[worker,demo]` in an environment of its own."""
    folder = tmp_path_factory.mktemp("service")
    yield WAYS_BY_NAME[request.param](folder, distributions.wheel, frozenset({"worker", "demo"}))
    shutil.rmtree(folder)  # 1.5 GB of torch where it was downloaded


@pytest.fixture(scope="session", params=WAYS)
def caller(
    request: pytest.FixtureRequest,
    distributions: Distributions,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """`sag-worker` without extras in an environment of its own."""
    folder = tmp_path_factory.mktemp("caller")
    return WAYS_BY_NAME[request.param](folder, distributions.wheel, frozenset())
