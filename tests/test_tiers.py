"""A test that takes longer than 2 s fails unless it is marked."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiers import Machine, Tiers, Usage

#: Its tests take time by moving the hand of `clock`.
PROGRAM = """
import pytest

@pytest.fixture(scope="module")
def shared(clock):
    clock.now_s += 3

@pytest.fixture
def own(clock):
    clock.now_s += 3

def test_quick(shared): pass
def test_body(clock): clock.now_s += 3
def test_fixture(own): pass

@pytest.mark.slow
def test_slow(clock): clock.now_s += 30

@pytest.mark.nightly
def test_nightly(clock): clock.now_s += 300
"""
CONFIGURATION = """
[pytest]
markers =
    slow
    nightly
"""


class Clock:
    """A clock that a test moves, and a machine on which everything takes `factor` as long."""

    def __init__(self, factor: float) -> None:
        self.now_s = 0.0
        self._factor = factor

    @pytest.fixture(scope="session")
    def clock(self) -> Clock:
        """The clock."""
        return self

    def read(self) -> float:
        """Seconds."""
        return self.now_s

    def usage(self) -> Usage:
        """Nothing is measured."""
        return Usage(0, 0.0, 0, 0)

    def factor(self, _since: Usage) -> float:
        """Is given."""
        return self._factor

    def close(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize(("factor", "failed"), [(1.0, ["body", "fixture"]), (2.0, [])])
def test_a_test_above_the_limit_fails_unless_it_is_marked(
    pytester: pytest.Pytester, factor: float, failed: list[str]
) -> None:
    """A test above the limit fails unless marked; its own fixtures count, and load extends it."""
    pytester.makepyfile(PROGRAM)
    pytester.makeini(CONFIGURATION)
    clock: Any = Clock(factor)
    result = pytester.runpytest_inprocess(plugins=[Tiers(clock, clock.read), clock])
    result.assert_outcomes(passed=5 - len(failed), failed=len(failed))
    for name in failed:
        result.stdout.fnmatch_lines([f"*::test_{name} took 3.0 s; the limit is 2 s times 1.0*"])


@pytest.mark.parametrize(
    ("later", "factor"),
    [
        (Usage(0, 0.0, 0, 0), 1.0),
        (Usage(10, 10.0, 100, 0), 1.0),
        (Usage(10, 25.0, 100, 0), 2.5),
        (Usage(10, 10.0, 100, 50), 2.0),
        (Usage(10, 25.0, 100, 50), 5.0),
    ],
)
def test_the_factor_is_load_and_stolen_time(later: Usage, factor: float) -> None:
    """The factor is the runnable processes a processor, divided by the share the machine had."""
    assert Usage(0, 0.0, 0, 0).factor_to(later) == pytest.approx(factor)


def test_this_machine_can_be_measured() -> None:
    """The kernel's numbers can be read, and the factor is at least 1."""
    machine = Machine()
    try:
        assert machine.usage().ticks > 0
        assert machine.factor(Usage(0, 0.0, 0, 0)) >= 1.0
    finally:
        machine.close()
