"""Applies faults to the deployment, and ends them when their time is over."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tests.chaos import messages, processes
from tests.chaos.fault_schedule import KILLS, ON_ALL, ON_LINK, ON_MACHINE, Fault, FaultKind
from tests.chaos.proxy import NOT_IMPLEMENTED
from tests.chaos.proxy_modes import Disturbance, Mode
from tests.chaos.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.deployment import Deployment
    from tests.chaos.load import Load
    from tests.chaos.machine import Machine
    from tests.chaos.proxy import Link
    from tests.chaos.worker_logs import WorkerProcess

#: Longest wait for a machine that a fault may hit, in seconds; then the fault is skipped.
ELIGIBLE_S = 60.0
#: Least and greatest delay of a chunk on a Redis link and on an S3 link, in seconds.
DELAY_S, SLOW_S = (0.02, 0.4), (0.2, 2.0)
#: Least and greatest share of open tasks that are cancelled or submitted again, and of messages
#: that are deleted.
SHARE = (0.1, 0.5)
#: Fewest and most tasks for a model whose hub never answers.
REMOTE_TASKS = (1, 3)
_POLL_INTERVAL_S = 0.05


@dataclass(frozen=True)
class AppliedFault:
    """A fault that was applied."""

    fault: Fault
    #: Monotonic seconds.
    at_s: float
    #: The processes whose running tasks it hit; empty where it hit none in particular.
    children: frozenset[WorkerProcess] = frozenset()
    #: Waiting tasks that it hit.
    tasks: frozenset[str] = frozenset()
    #: Time since the first claim of the process that was killed.
    after_loading_s: float | None = None
    machine: int | None = None


@dataclass
class FaultInjector:
    """Applies faults, one after the other; `lift` ends those whose time is over."""

    deployment: Deployment
    load: Load
    seed: int
    applied: list[AppliedFault] = field(default_factory=list)
    #: Faults for which no machine could be hit in time.
    skipped: list[Fault] = field(default_factory=list)
    _undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _frozen: set[int] = field(default_factory=set)
    #: Processes that were sent a signal that ends them, and may still be seen for a while.
    _ending: set[WorkerProcess] = field(default_factory=set)

    def apply(self, fault: Fault) -> AppliedFault | None:
        """Apply a fault to its target, or to the next machine that may be hit; waits for one."""
        if fault.kind in ON_MACHINE:
            applied = self._on_machine(fault)
        elif fault.kind in ON_LINK:
            applied = self._on_link(fault)
        elif fault.kind in ON_ALL:
            applied = self._on_all(fault)
        elif fault.kind is FaultKind.MESSAGES_LOST:
            applied = self._on_messages(fault)
        elif fault.kind in (FaultKind.HUB_SILENT, FaultKind.REMOTE_CONTROL):
            applied = self._by_callers(fault)
        else:
            applied = self._on_tasks(fault)
        if applied is None:
            self.skipped.append(fault)
        else:
            self.applied.append(applied)
        return applied

    def lift(self, *, everything: bool = False) -> None:
        """End the faults that are due, or all of them."""
        now_s = time.monotonic()
        due = [undo for at_s, undo in self._undo if everything or at_s <= now_s]
        self._undo = [] if everything else [each for each in self._undo if each[0] > now_s]
        for undo in due:
            undo()

    def _later(self, fault: Fault, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + fault.lasts_s, undo))

    def _on_machine(self, fault: Fault) -> AppliedFault | None:
        found = self._eligible(fault.target)
        if found is None:
            return None
        machine, child = found
        first_s, now_s = self.deployment.logs.loaded_s(child), time.monotonic()
        working = processes.of(child.pid, machine.name)
        if working is None or first_s is None or machine.supervisor is None:
            return None
        if fault.kind is not FaultKind.FREEZE:
            self._ending.add(child)
        if fault.kind is FaultKind.KILL_CHILD:
            working.send(signal.SIGKILL)
        elif fault.kind is FaultKind.FREEZE:
            self._freeze(fault, machine, working)
        elif fault.kind is FaultKind.MACHINE_GONE:
            self._remove_machine(fault, machine)
        else:
            machine.expect_end(fault.lasts_s)
            kill = fault.kind is FaultKind.KILL_SUPERVISOR
            machine.supervisor.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        since_s = now_s - first_s if fault.kind in KILLS else None
        return AppliedFault(
            fault, now_s, frozenset({child}), after_loading_s=since_s, machine=machine.number
        )

    def _freeze(self, fault: Fault, machine: Machine, working: processes.Process) -> None:
        working.send(signal.SIGSTOP)
        self._frozen.add(machine.number)

        def wake() -> None:
            working.send(signal.SIGCONT)
            self._frozen.discard(machine.number)

        self._later(fault, wake)

    def _remove_machine(self, fault: Fault, machine: Machine) -> None:
        """Kill all processes; the connections stay half-open until the fault is lifted."""
        token = machine.redis.disturb(Disturbance(Mode.HALF_OPEN))
        self._later(fault, lambda: machine.redis.calm(token))
        machine.expect_end(fault.lasts_s)
        processes.kill_all(machine.name)

    def _on_link(self, fault: Fault) -> AppliedFault:
        machines = self.deployment.machines
        ours = fault.target < len(machines)
        link = machines[fault.target].redis if ours else self.deployment.clients
        child = machines[fault.target].child() if ours else None
        now_s = time.monotonic()
        if fault.kind is FaultKind.RESET:
            link.reset()
        else:
            mode = Mode(fault.kind.value)
            self._disturb(fault, [link], Disturbance(mode, _between(DELAY_S, fault.strength)))
        children = frozenset({child} if child else ())
        return AppliedFault(fault, now_s, children, machine=fault.target if ours else None)

    def _on_all(self, fault: Fault) -> AppliedFault:
        working = [machine.child() for machine in self.deployment.machines]
        now_s, links = time.monotonic(), [machine.s3 for machine in self.deployment.machines]
        match fault.kind:
            case FaultKind.REDIS_RESTART | FaultKind.REDIS_KILL:
                kill, redis = fault.kind is FaultKind.REDIS_KILL, self.deployment.redis
                assert isinstance(redis, RedisServer)
                redis.stop(signal.SIGKILL if kill else signal.SIGTERM)
                self._later(fault, redis.start)
            case FaultKind.FAILOVER:
                self.deployment.fail_over(dies=fault.strength < 0.5)
            case FaultKind.S3_REFUSE:
                self._disturb(fault, links, Disturbance(Mode.REFUSE))
            case FaultKind.S3_ERROR:
                status = 500 if fault.strength < 0.5 else 503
                self._disturb(fault, links, Disturbance(Mode.ERROR, status=status))
            case FaultKind.S3_CONDITIONS:
                refuse = Disturbance(Mode.NO_CONDITIONS, status=NOT_IMPLEMENTED)
                self._disturb(fault, links, refuse)
            case FaultKind.S3_STALL:
                self._disturb(fault, links, Disturbance(Mode.STALL))
            case _:
                slow_s = _between(SLOW_S, fault.strength)
                self._disturb(fault, links, Disturbance(Mode.DELAY, slow_s))
        return AppliedFault(fault, now_s, frozenset(child for child in working if child))

    def _disturb(self, fault: Fault, links: list[Link], disturbance: Disturbance) -> None:
        tokens = [link.disturb(disturbance) for link in links]

        def calm() -> None:
            for link, token in zip(links, tokens, strict=True):
                link.calm(token)

        self._later(fault, calm)

    def _on_messages(self, fault: Fault) -> AppliedFault:
        rng = random.Random(f"{self.seed} {fault.number}")
        now_s, share = time.monotonic(), _between(SHARE, fault.strength)
        waited: frozenset[str] = frozenset()
        with suppress(RedisError):  # Redis is away: no message is deleted
            waited = messages.delete(self.deployment.redis.url, share, rng)
        return AppliedFault(fault, now_s, tasks=waited)

    def _by_callers(self, fault: Fault) -> AppliedFault:
        """Commands to all workers, or tasks for a model whose hub never answers."""
        if fault.kind is FaultKind.REMOTE_CONTROL:
            self.load.spawn(self.load.send_commands)
        else:
            for number in range(round(_between(REMOTE_TASKS, fault.strength))):
                task_id = f"remote{self.seed}-{fault.number}-{number}"
                self.load.spawn(partial(self.load.submit_remote, task_id))
        return AppliedFault(fault, time.monotonic())

    def _on_tasks(self, fault: Fault) -> AppliedFault:
        """Cancel or submit again a share of the open tasks, on a thread, as Redis may be away."""
        opened = sorted(self.load.events.open_tasks())
        rng = random.Random(f"{self.seed} {fault.number}")
        chosen = rng.sample(opened, round(_between(SHARE, fault.strength) * len(opened)))
        act = self.load.cancel if fault.kind is FaultKind.CANCEL_STORM else self.load.submit_again

        def storm() -> None:
            for task_id in chosen:
                act(task_id)

        self.load.spawn(storm)
        return AppliedFault(fault, time.monotonic())

    def _eligible(self, target: int) -> tuple[Machine, WorkerProcess] | None:
        """The target or the next machine whose worker may be hit; waits for one."""
        machines, deadline_s = self.deployment.machines, time.monotonic() + ELIGIBLE_S
        pause = threading.Event()
        while time.monotonic() < deadline_s and not self.load.is_done:
            self.deployment.logs.read()
            for step in range(len(machines)):
                machine = machines[(target + step) % len(machines)]
                if machine.number in self._frozen or machine.expects_end:
                    continue
                child = machine.child()
                if child is not None and child not in self._ending:
                    return machine, child
            self.lift()
            pause.wait(_POLL_INTERVAL_S)
        return None


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])
