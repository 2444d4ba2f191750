"""`SAG_COMPILE` where torch finds no compiler: `run`, a worker process alone and `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from typer.testing import CliRunner

from worker.app import create_app
from worker.cli import main
from worker.config.settings import Settings
from worker.doctor import servers
from worker.doctor.checks import run_checks
from worker.engine.loading.compiler import missing_compiler
from worker.exit_codes import INVALID
from worker.supervisor import supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from worker.doctor.finding import Finding


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty; the variables of compilers are unset."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def install(programs: Path, name: str) -> None:
    (programs / name).touch(mode=0o755)


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "g++"), ("cuda:0", "gcc"), ("cuda", "clang")],
)
def test_a_device_needs_its_own_compiler(programs: Path, device: str, name: str) -> None:
    """`SAG_COMPILE` needs a C++ compiler on the CPU and a C compiler on a GPU."""
    assert "SAG_COMPILE" in str(missing_compiler(device))
    install(programs, name)
    assert missing_compiler(device) is None
    other = "cuda" if device == "cpu" else "cpu"
    assert missing_compiler(other) is not None


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda:0", "CC")])
def test_a_named_compiler_is_the_one(
    programs: Path, monkeypatch: pytest.MonkeyPatch, device: str, variable: str
) -> None:
    """The compiler that CXX or CC names is the only one that counts, as torch calls no other."""
    for name in ("gcc", "g++"):
        install(programs, name)
    monkeypatch.setenv(variable, "mine")
    assert missing_compiler(device) is not None
    install(programs, "mine")
    assert missing_compiler(device) is None


@pytest.mark.parametrize("compiled", [False, True])
def test_the_start_is_refused(
    programs: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """Without a compiler `SAG_COMPILE` ends `run` with status 2 and refuses a worker process.

    Else every task would fail, after minutes. Without the setting nothing is asked for.
    """
    run = mock.Mock(return_value=0)
    monkeypatch.setattr(supervisor, "run", run)
    monkeypatch.setenv("SAG_DEVICE", "cpu")
    monkeypatch.setenv("SAG_COMPILE", str(compiled))
    done = CliRunner().invoke(main.app, ["run"])
    assert done.exit_code == (INVALID if compiled else 0)
    assert ("SAG_COMPILE" in done.output, run.called) == (compiled, not compiled)
    if compiled:
        with pytest.raises(ValueError, match=r"SAG_COMPILE.*g\+\+.*COMPILER=1"):
            create_app(Settings())
        install(programs, "g++")
    create_app(Settings())


def test_doctor_names_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` names a missing compiler only with `SAG_COMPILE`, and with what mends it."""
    monkeypatch.setattr(servers, "check_redis", lambda _: [])
    monkeypatch.setattr(servers, "check_s3", lambda _: [])

    def found(*, compiled: bool) -> Finding | None:
        findings = run_checks(Settings(device="cpu", compile=compiled))
        return {each.what: each for each in findings}.get("compiler")

    assert found(compiled=False) is None
    without = found(compiled=True)
    assert without is not None
    assert not without.ok
    assert "SAG_COMPILE" in without.found
    assert "COMPILER=1" in without.fix
    install(programs, "g++")
    mended = found(compiled=True)
    assert mended is not None
    assert mended.ok
