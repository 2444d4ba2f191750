"""One run from the undisturbed reference to the verdict."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis import Redis

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.chaos import evidence, invariants
from tests.chaos.faults import Hand
from tests.chaos.history import History, Observer
from tests.chaos.load import Load
from tests.chaos.orders import Order, orders, pool
from tests.chaos.recovery import Recovery, recoveries
from tests.chaos.schedule import Kind, faults
from tests.chaos.site import patches
from tests.chaos.stage import PREFIX, Stage, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.chaos.evidence import Evidence
    from tests.chaos.faults import Struck
    from tests.chaos.invariants import Violation

#: First part of the ids of the tasks that nothing disturbs.
REFERENCE = "undisturbed-"
#: Longest silence of a task that nothing disturbs, in seconds.
REFERENCE_S = 120.0
#: How long the last acknowledgements and pushes may take when all tasks have ended, in seconds: a
#: push that its worker died over is another's a minute later.
SETTLE_S = 90.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Plan:
    """What to do; two runs of one plan have the same orders and the same faults in one order."""

    seed: int = 7
    #: None is without end: then `seconds` must be given.
    tasks: int | None = 200
    #: Submit for so long, evenly when `tasks` are given too; None until all are submitted.
    seconds: float | None = None
    every_s: float = 2.0
    machines: int = 4
    kinds: frozenset[Kind] = frozenset(Kind)
    #: Mechanism that is turned off in every worker, one of `patches.SWITCHES`.
    off: str | None = None
    #: Distinct requests.
    requests: int = 24
    #: Added to the few that most of them have: a long task still runs when its frozen owner wakes.
    more_steps: int = 0
    #: Tasks that may be open at once.
    backlog: int = 40
    #: One task in so many kills its workers; None is none.
    poison_in: int | None = 500
    #: By how much the last machine's clock is off, in seconds.
    clock_off_s: float = 180.0
    #: Silence of all tasks after which those that are open are lost, in seconds.
    patience_s: float = 180.0
    #: More of the workers' environment.
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What a run showed."""

    plan: Plan
    duration_s: float
    evidence: Evidence
    violations: tuple[Violation, ...]
    struck: tuple[Struck, ...]
    #: Faults that found nobody to hit.
    missed: int
    recoveries: Mapping[Kind, Recovery]
    #: Supervisors that ended though nobody had ended them.
    fallen: int
    #: Machines that did not end after SIGTERM.
    stuck: tuple[int, ...]
    tracebacks: Mapping[str, int]
    #: Whether `plan.off` was turned off in some process.
    switched: bool

    @property
    def tasks(self) -> dict[str, Order]:
        """The orders but for the undisturbed ones."""
        return {
            task_id: order
            for task_id, order in self.evidence.orders.items()
            if not task_id.startswith(REFERENCE)
        }

    def breaches(self, *laws: Callable[..., Any]) -> set[str]:
        """Tasks that break any of these laws."""
        names = {law.__name__ for law in laws}
        return {each.what for each in self.violations if each.law in names}


def conduct(plan: Plan, folder: Path, say: Callable[[str], None]) -> Findings:
    """Run a plan; servers and logs keep their files in `folder`, `say` tells what happens."""
    began_s, history = time.monotonic(), History()
    extra = dict(plan.settings)
    if plan.off is not None:
        extra[patches.OFF] = plan.off
    with Stage(folder, plan.machines, extra, plan.clock_off_s) as stage:
        with _observed(stage, history):
            say("a worker makes the undisturbed pictures")
            stage.start(range(1))
            requests = pool(plan.seed, plan.requests, plan.more_steps)
            reference = _undisturbed(stage, history, requests)
            stage.start(range(1, plan.machines))
            say(f"{plan.machines} machines are ready after {time.monotonic() - began_s:.0f} s")
            hand = _disturb(plan, stage, history, requests, say)
            _settle(stage)
            stuck = stage.drain()
        found = evidence.gather(stage, history, reference, hand.struck)
        journal = stage.journal
        return Findings(
            plan=plan,
            duration_s=time.monotonic() - began_s,
            evidence=found,
            violations=tuple(invariants.check(found)),
            struck=tuple(hand.struck),
            missed=len(hand.missed),
            recoveries=recoveries(hand.struck, history.timeline, journal.owner),
            fallen=sum(machine.fallen for machine in stage.machines),
            stuck=tuple(stuck),
            tracebacks=dict(journal.tracebacks),
            switched=plan.off is None or plan.off in journal.off,
        )


@contextmanager
def _observed(stage: Stage, history: History) -> Iterator[None]:
    observer = Observer(stage.redis.url, Keys(), history)
    observer.start()
    try:
        yield
    finally:
        observer.stop()


def _undisturbed(
    stage: Stage, history: History, requests: list[dict[str, Any]]
) -> dict[int, tuple[str, ...]]:
    """sha256 of each request's pictures, made one at a time."""
    with GenerationClient(stage.clients_url) as client:
        for number, request in enumerate(requests):
            order = Order(f"{REFERENCE}{number}", number)
            history.ask(order)
            for event in client.submit(request, order.task_id).events(timeout=REFERENCE_S):
                history.see(event)
            if event.type != "succeeded":
                message = f"request {request} ends undisturbed as {event}"
                raise RuntimeError(message)
    objects = evidence.objects(stage)[0]
    return {
        number: evidence.pictures(objects, f"{PREFIX}/{REFERENCE}{number}/")
        for number in range(len(requests))
    }


def _disturb(
    plan: Plan,
    stage: Stage,
    history: History,
    requests: list[dict[str, Any]],
    say: Callable[[str], None],
) -> Hand:
    """Submit everything while faults strike, lift them all, and wait for every task."""
    pace_s = plan.seconds / plan.tasks if plan.seconds and plan.tasks else 0.0
    drawn = orders(plan.seed, plan.tasks, plan.requests, plan.poison_in)
    load = Load(stage.clients_url, history, requests, drawn, plan.backlog, pace_s)
    hand = Hand(stage, load, plan.seed)
    began_s = due_s = time.monotonic()
    until_s = began_s + plan.seconds if plan.seconds else float("inf")
    load.start()
    try:
        for fault in faults(plan.seed, plan.kinds, plan.machines, plan.every_s):
            due_s += fault.after_s
            while time.monotonic() < min(due_s, until_s) and not load.is_done:
                hand.lift()
                time.sleep(_LOOK_S)
            if load.is_done or time.monotonic() >= until_s:
                break
            struck = hand.strike(fault)
            say(_line(time.monotonic() - began_s, struck, fault.kind, len(history.open())))
            due_s = max(due_s, time.monotonic() - _LOOK_S)  # no burst after a long wait
        while time.monotonic() < until_s and not load.is_done:  # there are no faults
            time.sleep(_LOOK_S)
    finally:
        load.close()
        hand.lift(everything=True)
    say(f"all is submitted, the faults are lifted, {len(history.open())} tasks are open")
    load.join(plan.patience_s)
    return hand


def _line(at_s: float, struck: Struck | None, kind: Kind, opened: int) -> str:
    if struck is None:
        return f"{at_s:6.1f} s  {kind:<16} found nobody at work"
    whom = "" if struck.machine is None else f"machine {struck.machine}"
    lasts = f"{struck.fault.lasts_s:.1f} s" if struck.fault.lasts_s else ""
    return f"{at_s:6.1f} s  {kind:<16} {whom:<10} {lasts:<7} {opened} open"


def _settle(stage: Stage) -> None:
    """Wait for the last acknowledgements."""
    with Redis.from_url(stage.redis.url) as redis, suppress(TimeoutError):
        wait_until(lambda: not any(evidence.left(redis, Keys()).values()), SETTLE_S)
