"""Every duration of the lease protocol, in seconds: who waits for whom before a task moves on.

One task whose worker dies right after a renewal, with leases of `lease_s`:

    worker          renews task and message          dead
                      |--P--|--P--|--P--|             x
    task lease                          |<-------- lease_s -------->| expired: may be claimed
    message lease                       |<-------- lease_s + MESSAGE_MARGIN_S -->| expired
    reconciler      |R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R|R| puts it back
    next worker                                                                    | claims: runs

    P  renewal_period_s(lease_s)        R  RECONCILE_PERIOD_S

- P is a fraction of a lease, so a renewal may fail or be late without anything expiring.
- The message returns after its task's lease has expired (MESSAGE_MARGIN_S). Earlier, its claim
  would be answered `held` and the message be dropped as a duplicate.
- The elected reconciler extends its lock every R; ELECTION_TTL_S after the last time another one
  takes over. If it was frozen for that long, so may every worker have been: nothing that expired
  meanwhile is taken for lost.
- After an outage of Redis every worker gets UNAVAILABLE_GRACE_S to renew once before expired leases
  count: the longest P and the pause before a failed renewal is tried again.
- A running task whose message is lost is sent again LOST_TASK_DELAY_S after its lease expired, not
  before: the walk over all open tasks, every `walk_period_s(lease_s)`, compares whole seconds.

`tests/record/test_timing.py` checks these inequalities for every lease that the settings allow.
The broker's modules are passed what they need, so that they import nothing from here.
"""

from __future__ import annotations

#: Renewals within one lease.
RENEWALS_PER_LEASE = 4
#: Upper bound of the time between two renewals, and so for noticing a cancel whose pub/sub message
#: was lost.
MAX_RENEWAL_PERIOD_S = 2.0
#: Longest pause after a failed renewal.
MAX_RENEWAL_RETRY_S = 0.25
#: How much longer than its task's lease a message's lease lasts.
MESSAGE_MARGIN_S = 0.5
#: How long after its lease expired a running task is taken for lost.
LOST_TASK_DELAY_S = 0.5
#: Pause between two rounds of the reconciler.
RECONCILE_PERIOD_S = 0.5
#: Time to live of the elected reconciler's lock, which every round extends.
ELECTION_TTL_S = 2.0
#: After an outage, the time in which no expired lease counts.
UNAVAILABLE_GRACE_S = MAX_RENEWAL_PERIOD_S + 1.0


def renewal_period_s(lease_s: float) -> float:
    """Time between two renewals."""
    return min(lease_s / RENEWALS_PER_LEASE, MAX_RENEWAL_PERIOD_S)


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
    """Time between two walks over the open tasks."""
    return lease_s / 2
