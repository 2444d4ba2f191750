"""The inequalities of the lease protocol, for every lease that the settings allow."""

from __future__ import annotations

import pytest

from worker.config.settings import Settings
from worker.recovery import timing
from worker.recovery.timing import (
    ELECTION_TTL_S,
    LOST_TASK_DELAY_S,
    MAX_RENEWAL_PERIOD_S,
    MAX_RENEWAL_RETRY_S,
    MESSAGE_MARGIN_S,
    RECONCILE_PERIOD_S,
    UNAVAILABLE_GRACE_S,
)


def limits(field: str) -> tuple[float, float]:
    """The smallest and the largest value that a setting allows."""
    found = Settings.model_fields[field].metadata
    (least,), (most,) = (
        [getattr(each, name) for each in found if hasattr(each, name)] for name in ("ge", "le")
    )
    return float(least), float(most)


LEASES_S = [*limits("lease_s"), 3.0, 8.0, 15.0]


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_failed_renewal_costs_no_lease(lease_s: float) -> None:
    """A renewal that fails after a whole timeout is retried before the lease has expired."""
    late_s = timing.renewal_period_s(lease_s) + timing.renewal_timeout_s(lease_s)
    assert late_s + timing.renewal_retry_s(lease_s) < lease_s
    assert timing.renewal_period_s(lease_s) <= lease_s / timing.RENEWALS_PER_LEASE


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_a_message_returns_after_the_lease_of_its_task(lease_s: float) -> None:
    """A message returns after its task's lease: before, its claim would be answered `held`."""
    assert timing.message_lease_s(lease_s) == lease_s + MESSAGE_MARGIN_S > lease_s


def test_every_worker_can_renew_within_the_grace_period() -> None:
    """After an outage a renewal of each worker comes before any expired lease counts."""
    assert UNAVAILABLE_GRACE_S >= MAX_RENEWAL_PERIOD_S + MAX_RENEWAL_RETRY_S
    assert all(timing.renewal_retry_s(each) <= MAX_RENEWAL_RETRY_S for each in LEASES_S)
    assert all(timing.renewal_period_s(each) <= MAX_RENEWAL_PERIOD_S for each in LEASES_S)


def test_the_elected_reconciler_stays_elected() -> None:
    """The elected reconciler extends its lock at least twice before that expires."""
    assert 2 * RECONCILE_PERIOD_S < ELECTION_TTL_S


def test_a_freeze_that_costs_leases_is_noticed() -> None:
    """A freeze that lasts a whole lease is longer than the election's TTL, and so noticed."""
    assert limits("lease_s")[0] >= ELECTION_TTL_S


@pytest.mark.parametrize("lease_s", LEASES_S)
def test_lost_tasks_are_looked_for_in_every_lease(lease_s: float) -> None:
    """A task that was untouched for a lease is found within the next one."""
    assert RECONCILE_PERIOD_S <= timing.walk_period_s(lease_s) < lease_s
    assert 0 < LOST_TASK_DELAY_S < lease_s
