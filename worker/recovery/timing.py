"""Every duration of the lease protocol, in seconds, and how they depend on each other.

A worker renews a task and its message, is killed, and another worker continues the task:

    worker         P---P---P---x                                 P  renewal_period_s(lease_s)
    task lease             |------------------->|                lease_s
    message lease          |----------------------->|            + MESSAGE_MARGIN_S
    reconciler     R R R R R R R R R R R R R R R R R R           R  RECONCILE_PERIOD_S
    message                                           requeued
    next worker                                        claims: the task's lease has expired

- P is a fraction of a lease: a renewal can fail and be retried before anything expires.
- A message's lease outlasts its task's. Requeued earlier, its claim would be answered `held`, and
  the message would be dropped as a duplicate.
- The elected reconciler extends its lock in each round; ELECTION_TTL_S after the last time another
  one is elected. If a reconciler was frozen for that long, Redis or the machine may have frozen
  every worker, so what expired meanwhile does not count as lost.
- After an outage of Redis no expired lease counts for UNAVAILABLE_GRACE_S: the longest P, plus the
  retry of a failed renewal.
- An orphaned task, whose message is gone too, is sent again by a walk over all messages and open
  tasks, once its lease has been expired for LOST_TASK_DELAY_S. walk_period_s(lease_s) after a walk
  the next one begins.

`tests/record/test_timing.py` checks these inequalities for the leases that the settings allow. The
broker imports nothing from here: it is passed the lease of a message.
"""

from __future__ import annotations

#: Renewals within one lease.
RENEWALS_PER_LEASE = 4
#: Upper bound of the time between two renewals, and so for noticing a cancel whose pub/sub message
#: was lost.
MAX_RENEWAL_PERIOD_S = 2.0
#: The same of a worker without tasks; a claim makes it renew at once.
MAX_IDLE_PERIOD_S = 5.0
#: Longest pause before a failed renewal is retried.
MAX_RENEWAL_RETRY_S = 0.25
#: How much longer than its task's lease a message's lease lasts.
MESSAGE_MARGIN_S = 0.5
#: How long after its lease expired a running task counts as lost.
LOST_TASK_DELAY_S = 0.5
#: Pause between two rounds of the reconciler.
RECONCILE_PERIOD_S = 0.5
#: Time to live of the elected reconciler's lock, which every round extends.
ELECTION_TTL_S = 2.0
#: Longest pause between two attempts of a worker to be elected.
MAX_ELECTION_RETRY_S = 2.0
#: How long a process that renews nothing any more is reported by `health`, and then stays in the
#: list of workers at least: its machine may be gone.
FORGET_WORKER_S = 600.0
#: How long after an outage no expired lease counts.
UNAVAILABLE_GRACE_S = MAX_RENEWAL_PERIOD_S + 1.0


def renewal_period_s(lease_s: float) -> float:
    """Time between two renewals."""
    return min(lease_s / RENEWALS_PER_LEASE, MAX_RENEWAL_PERIOD_S)


def idle_period_s(lease_s: float) -> float:
    """The same for a worker that holds nothing, which only shows that it lives."""
    return min(lease_s / 3, MAX_IDLE_PERIOD_S)


def election_retry_s(lease_s: float) -> float:
    """Pause between two attempts of a worker to be elected, before a lease expires."""
    return min(lease_s / RENEWALS_PER_LEASE, MAX_ELECTION_RETRY_S)


def renewal_retry_s(lease_s: float) -> float:
    """Pause after a failed renewal."""
    return min(renewal_period_s(lease_s) / 4, MAX_RENEWAL_RETRY_S)


def renewal_timeout_s(lease_s: float) -> float:
    """Longest wait for Redis's answer to a renewal, so that a lost connection costs no lease."""
    return lease_s / RENEWALS_PER_LEASE


def message_lease_s(lease_s: float) -> float:
    """Lease of a message, which outlasts that of its task."""
    return lease_s + MESSAGE_MARGIN_S


def walk_period_s(lease_s: float) -> float:
    """Time between two walks over messages and open tasks."""
    return lease_s / 2
