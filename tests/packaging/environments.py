"""Virtual environments that a built wheel is installed into."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
#: Longest run of a program, and of a pip that installs torch on a busy machine, in seconds.
COMMAND_S, INSTALL_S = 600, 1500


@dataclass(frozen=True)
class Environment:
    """A virtual environment; its programs run in `folder` and see nothing of the checkout."""

    path: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; its status is for the caller to check."""
        variables = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "SAG_", "AWS_", "VIRTUAL_ENV", "COVERAGE"))
        }  # fmt: skip
        variables["PATH"] = f"{self.path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return subprocess.run(
            [str(self.path / "bin" / program), *arguments],
            cwd=self.folder, env=variables, capture_output=True, text=True, check=False,
            timeout=COMMAND_S,
        )  # fmt: skip


def linked(folder: Path, wheel: Path, extras: frozenset[str]) -> Environment:
    """An environment with the wheel and links to what its metadata requires, and no more.

    The files are those that are installed here, so nothing is downloaded; a dependency that the
    metadata does not name is missing all the same.
    """
    environment = _empty(folder)
    _pip(environment, "--no-deps", "--no-index", str(wheel))
    (site,) = (environment.path / "lib").glob("python*/site-packages")
    wanted = metadata.Distribution.at(next(site.glob("sag_worker-*.dist-info")))
    for distribution in _required(wanted, extras):
        for file in distribution.files or []:
            source, target = Path(str(distribution.locate_file(file))), site / file
            target = Path(os.path.normpath(target))  # programs are listed as `../../../bin/…`
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.exists() and not target.exists():
                target.symlink_to(source.resolve())
    return environment


def downloaded(folder: Path, wheel: Path, extras: frozenset[str]) -> Environment:
    """An environment made by `pip install` of the wheel, its dependencies from the index."""
    environment = _empty(folder)
    asked = f"[{','.join(sorted(extras))}]" if extras else ""
    constraints = str(ROOT / "constraints.txt")
    # To compile every module of transformers takes minutes; Python compiles what it imports.
    _pip(environment, "--no-compile", "--constraint", constraints, f"{wheel}{asked}")
    return environment


def _empty(folder: Path) -> Environment:
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    (folder / "empty").mkdir()
    return Environment(folder / "environment", folder / "empty")


def _pip(environment: Environment, *arguments: str) -> None:
    python = str(environment.path / "bin" / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
         "--disable-pip-version-check", *arguments],
        check=True, timeout=INSTALL_S,
    )  # fmt: skip


def _required(wanted: metadata.Distribution, extras: frozenset[str]) -> list[metadata.Distribution]:
    """The distributions that `wanted` needs with these extras, and those that they need."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(wanted, extras)]
    while left:
        distribution, active = left.pop()
        for line in distribution.requires or []:
            requirement = Requirement(line)
            names = {"", *active}
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": name}) for name in names):
                continue
            name = canonicalize_name(requirement.name)
            key = (name, frozenset(requirement.extras))
            if key not in seen:
                seen.add(key)
                found[name] = metadata.distribution(name)
                left.append((found[name], key[1]))
    return list(found.values())
