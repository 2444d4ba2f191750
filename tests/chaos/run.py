"""One run: reference pictures, faults, and the check of the laws."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis import Redis

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.chaos import evidence, invariants, others
from tests.chaos.deployment import POLL_INTERVAL_S, PREFIX, Deployment, wait_until
from tests.chaos.fault_injector import FaultInjector
from tests.chaos.fault_schedule import FaultKind, faults, possible
from tests.chaos.findings import REFERENCE, Findings
from tests.chaos.load import Load
from tests.chaos.recorded_events import Observer, RecordedEvents
from tests.chaos.recovery import recoveries
from tests.chaos.site import patches
from tests.chaos.submissions import Submission, draw_submissions, request_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.chaos.fault_injector import AppliedFault
    from tests.chaos.others import Other
    from tests.chaos.plan import Plan

#: Longest wait for an event of a task of the reference, in seconds.
REFERENCE_S = 120.0
#: Longest wait for acknowledgements and pushes when all tasks have ended, in seconds: a push whose
#: worker died is retried by another worker a minute later.
MESSAGES_S = 90.0
#: Others for which the wait between two looks at all messages is a second longer.
OTHERS_PER_S = 10_000
_POLL_INTERVAL_S = 0.05


def run_plan(plan: Plan, folder: Path, say: Callable[[str], None]) -> Findings:
    """Run a plan; servers and logs have their files in `folder`, `say` prints what happens."""
    began_s, events = time.monotonic(), RecordedEvents()
    extra = dict(plan.settings)
    if plan.off is not None:
        extra[patches.OFF] = plan.off
    with Deployment(
        folder, plan.machines, extra, plan.clock_off_s, sentinel=plan.sentinel
    ) as deployment:
        with _observed(deployment, events):
            say("one worker makes the reference pictures")
            deployment.start(range(1))
            requests = request_pool(plan.seed, plan.requests, plan.more_steps)
            reference = _reference(deployment, events, requests)
            deployment.start(range(1, plan.machines))
            say(f"{plan.machines} machines are ready after {time.monotonic() - began_s:.0f} s")
            others.submit(deployment.service_url, plan.others, requests[others.REQUEST])
            say(f"{plan.others} other tasks are submitted")
            injector = _disturb(plan, deployment, events, requests, say)
            _wait_for_messages(deployment, plan.others)
            stuck = deployment.drain()
        waited = _take_others(deployment, plan.others)
        found = evidence.collect(deployment, events, reference, injector.applied, waited)
        logs = deployment.logs
        return Findings(
            plan=plan,
            duration_s=time.monotonic() - began_s,
            evidence=found,
            violations=tuple(invariants.check(found)),
            applied=tuple(injector.applied),
            skipped=len(injector.skipped),
            recoveries=recoveries(injector.applied, events.timeline, logs.owner),
            unexpected_ends=sum(machine.unexpected_ends for machine in deployment.machines),
            stuck=tuple(stuck),
            tracebacks=dict(logs.tracebacks),
            switched=plan.off is None or plan.off in logs.off,
        )


@contextmanager
def _observed(deployment: Deployment, events: RecordedEvents) -> Iterator[None]:
    observer = Observer(deployment.redis.service_url, Keys(), events)
    observer.start()
    try:
        yield
    finally:
        observer.stop()


def _reference(
    deployment: Deployment, events: RecordedEvents, requests: list[dict[str, Any]]
) -> dict[int, tuple[str, ...]]:
    """sha256 of each request's pictures, made one at a time and without faults."""
    with GenerationClient(deployment.service_url) as client:
        for number, request in enumerate(requests):
            submission = Submission(f"{REFERENCE}{number}", number)
            events.add_submission(submission)
            for event in client.submit(request, submission.task_id).events(timeout=REFERENCE_S):
                events.add_client_event(event)
            if event.type != "succeeded":
                message = f"request {request} ends without a fault as {event}"
                raise RuntimeError(message)
    objects = evidence.objects(deployment)[0]
    return {
        number: evidence.pictures(objects, f"{PREFIX}/{REFERENCE}{number}/")
        for number in range(len(requests))
    }


def _disturb(
    plan: Plan,
    deployment: Deployment,
    events: RecordedEvents,
    requests: list[dict[str, Any]],
    say: Callable[[str], None],
) -> FaultInjector:
    """Submit everything while faults are applied, lift them, and wait for every task."""
    pace_s = plan.seconds / plan.tasks if plan.seconds and plan.tasks else 0.0
    drawn = draw_submissions(plan.seed, plan.tasks, plan.requests, plan.poison_in)
    urls = deployment.clients_url, deployment.service_url
    load = Load(*urls, events, requests, drawn, plan.backlog, pace_s)
    injector = FaultInjector(deployment, load, plan.seed)
    began_s = due_s = time.monotonic()
    until_s = began_s + plan.seconds if plan.seconds else float("inf")

    def is_over() -> bool:
        if len(injector.applied) < plan.least_faults and events.open_tasks():
            return False
        return load.is_done or time.monotonic() >= until_s

    load.start()
    try:
        kinds = possible(plan.kinds, sentinel=plan.sentinel)
        for fault in faults(plan.seed, kinds, plan.machines, plan.every_s):
            due_s += fault.after_s
            while time.monotonic() < due_s and not is_over():
                injector.lift()
                time.sleep(_POLL_INTERVAL_S)
            if is_over():
                break
            applied = injector.apply(fault)
            say(_line(time.monotonic() - began_s, applied, fault.kind, len(events.open_tasks())))
            # After a long wait for a machine there is no burst of faults.
            due_s = max(due_s, time.monotonic() - _POLL_INTERVAL_S)
        while not is_over():  # without faults
            time.sleep(_POLL_INTERVAL_S)
    finally:
        load.close()
        injector.lift(everything=True)
    say(
        f"everything is submitted, the faults are lifted, {len(events.open_tasks())} tasks are open"
    )
    load.join(plan.patience_s + others.walks_s(plan.others))
    return injector


def _line(at_s: float, applied: AppliedFault | None, kind: FaultKind, opened: int) -> str:
    if applied is None:
        return f"{at_s:6.1f} s  {kind:<16} skipped: no machine could be hit"
    target = "" if applied.machine is None else f"machine {applied.machine}"
    lasts = f"{applied.fault.lasts_s:.1f} s" if applied.fault.lasts_s else ""
    return f"{at_s:6.1f} s  {kind:<16} {target:<10} {lasts:<7} {opened} open"


def _wait_for_messages(deployment: Deployment, count: int) -> None:
    """Wait for the last acknowledgements, and until lost messages of the others are back."""
    with Redis.from_url(deployment.redis.url, protocol=2) as redis, suppress(TimeoutError):
        wait_until(
            lambda: others.only_others_are_left(redis),
            MESSAGES_S + others.walks_s(count),
            every_s=POLL_INTERVAL_S + count / OTHERS_PER_S,
        )


def _take_others(deployment: Deployment, count: int) -> dict[str, Other]:
    """What the others are at the end; removes them from Redis."""
    with Redis.from_url(deployment.redis.url, protocol=2) as redis:
        found = others.collect(redis, count)
        others.drop(redis, count)
    return found
