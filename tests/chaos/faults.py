"""The hand that strikes: applies a fault to the stage, and takes it back when its time is over."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tests.chaos import messages, processes
from tests.chaos.disturbance import Disturbance, Mode
from tests.chaos.schedule import KILLS, ON_ALL, ON_LINK, ON_MACHINE, Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.journal import Child
    from tests.chaos.load import Load
    from tests.chaos.machine import Machine
    from tests.chaos.proxy import Link
    from tests.chaos.stage import Stage

#: Longest wait for a machine that a fault may hit, in seconds; then the fault is left out.
ELIGIBLE_S = 60.0
#: Delays of a link, and of S3 for each piece, in seconds, by a fault's strength.
DELAY_S, SLOW_S = (0.02, 0.4), (0.2, 2.0)
#: Share of the open tasks that a storm cancels or that are submitted again, and of the messages
#: that are lost.
SHARE = (0.1, 0.5)
_LOOK_S = 0.05


@dataclass(frozen=True)
class Struck:
    """A fault that hit."""

    fault: Fault
    #: Monotonic seconds.
    moment_s: float
    #: Whose running tasks it concerned; empty where it was nobody's in particular.
    children: frozenset[Child] = frozenset()
    #: Waiting tasks that it concerned.
    tasks: frozenset[str] = frozenset()
    #: Since the first claim of the process that was killed.
    after_loading_s: float | None = None
    machine: int | None = None


@dataclass
class Hand:
    """Applies faults, one after the other; `lift` takes back those whose time is over."""

    stage: Stage
    load: Load
    seed: int
    struck: list[Struck] = field(default_factory=list)
    #: Faults that found nobody to hit in time.
    missed: list[Fault] = field(default_factory=list)
    _undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _frozen: set[int] = field(default_factory=set)
    #: Processes that were told to end, or whose machine was: the kernel may take its time.
    _spent: set[Child] = field(default_factory=set)

    def strike(self, fault: Fault) -> Struck | None:
        """Apply a fault, to its target or the next machine that may be hit; waits for one."""
        if fault.kind in ON_MACHINE:
            struck = self._on_machine(fault)
        elif fault.kind in ON_LINK:
            struck = self._on_link(fault)
        elif fault.kind in ON_ALL:
            struck = self._on_all(fault)
        elif fault.kind is Kind.MESSAGES_LOST:
            struck = self._on_messages(fault)
        else:
            struck = self._on_tasks(fault)
        if struck is None:
            self.missed.append(fault)
        else:
            self.struck.append(struck)
        return struck

    def lift(self, *, everything: bool = False) -> None:
        """Take back what is due."""
        now_s = time.monotonic()
        due = [undo for at_s, undo in self._undo if everything or at_s <= now_s]
        self._undo = [] if everything else [each for each in self._undo if each[0] > now_s]
        for undo in due:
            undo()

    def _later(self, fault: Fault, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + fault.lasts_s, undo))

    def _on_machine(self, fault: Fault) -> Struck | None:
        found = self._eligible(fault.target)
        if found is None:
            return None
        machine, child = found
        first_s, now_s = self.stage.journal.loaded_s(child), time.monotonic()
        working = processes.of(child.pid, machine.name)
        if working is None or first_s is None or machine.supervisor is None:
            return None
        if fault.kind is not Kind.FREEZE:
            self._spent.add(child)
        if fault.kind is Kind.KILL_CHILD:
            working.send(signal.SIGKILL)
        elif fault.kind is Kind.FREEZE:
            self._freeze(fault, machine, working)
        elif fault.kind is Kind.MACHINE_GONE:
            self._take_away(fault, machine)
        else:
            machine.leave(fault.lasts_s)
            kill = fault.kind is Kind.KILL_SUPERVISOR
            machine.supervisor.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        since_s = now_s - first_s if fault.kind in KILLS else None
        return Struck(
            fault, now_s, frozenset({child}), after_loading_s=since_s, machine=machine.number
        )

    def _freeze(self, fault: Fault, machine: Machine, working: processes.Process) -> None:
        working.send(signal.SIGSTOP)
        self._frozen.add(machine.number)

        def wake() -> None:
            working.send(signal.SIGCONT)
            self._frozen.discard(machine.number)

        self._later(fault, wake)

    def _take_away(self, fault: Fault, machine: Machine) -> None:
        """Nobody is told that the machine is gone: its connections stay until they are lifted."""
        token = machine.redis.disturb(Disturbance(Mode.HALF_OPEN))
        self._later(fault, lambda: machine.redis.calm(token))
        machine.leave(fault.lasts_s)
        processes.kill_all(machine.name)

    def _on_link(self, fault: Fault) -> Struck:
        machines = self.stage.machines
        ours = fault.target < len(machines)
        link = machines[fault.target].redis if ours else self.stage.clients
        child = machines[fault.target].child() if ours else None
        now_s = time.monotonic()
        if fault.kind is Kind.RESET:
            link.reset()
        else:
            mode = Mode(fault.kind.value)
            self._disturb(fault, [link], Disturbance(mode, _between(DELAY_S, fault.strength)))
        children = frozenset({child} if child else ())
        return Struck(fault, now_s, children, machine=fault.target if ours else None)

    def _on_all(self, fault: Fault) -> Struck:
        working = [machine.child() for machine in self.stage.machines]
        now_s, links = time.monotonic(), [machine.s3 for machine in self.stage.machines]
        match fault.kind:
            case Kind.REDIS_RESTART | Kind.REDIS_KILL:
                kill = fault.kind is Kind.REDIS_KILL
                self.stage.redis.stop(signal.SIGKILL if kill else signal.SIGTERM)
                self._later(fault, self.stage.redis.start)
            case Kind.S3_REFUSE:
                self._disturb(fault, links, Disturbance(Mode.REFUSE))
            case Kind.S3_ERROR:
                status = 500 if fault.strength < 0.5 else 503
                self._disturb(fault, links, Disturbance(Mode.ERROR, status=status))
            case Kind.S3_STALL:
                self._disturb(fault, links, Disturbance(Mode.STALL))
            case _:
                slow_s = _between(SLOW_S, fault.strength)
                self._disturb(fault, links, Disturbance(Mode.DELAY, slow_s))
        return Struck(fault, now_s, frozenset(child for child in working if child))

    def _disturb(self, fault: Fault, links: list[Link], disturbance: Disturbance) -> None:
        tokens = [link.disturb(disturbance) for link in links]

        def calm() -> None:
            for link, token in zip(links, tokens, strict=True):
                link.calm(token)

        self._later(fault, calm)

    def _on_messages(self, fault: Fault) -> Struck:
        rng = random.Random(f"{self.seed} {fault.number}")
        now_s, share = time.monotonic(), _between(SHARE, fault.strength)
        waited: frozenset[str] = frozenset()
        with suppress(RedisError):  # it is away: nothing is lost this time
            waited = messages.lose(self.stage.redis.url, share, rng)
        return Struck(fault, now_s, tasks=waited)

    def _on_tasks(self, fault: Fault) -> Struck:
        """Cancel or submit again a share of the open tasks, from a thread: Redis may be away."""
        opened = sorted(self.load.history.open())
        rng = random.Random(f"{self.seed} {fault.number}")
        chosen = rng.sample(opened, round(_between(SHARE, fault.strength) * len(opened)))
        act = self.load.cancel if fault.kind is Kind.CANCEL_STORM else self.load.submit_again

        def storm() -> None:
            for task_id in chosen:
                act(task_id)

        self.load.spawn(storm)
        return Struck(fault, time.monotonic())

    def _eligible(self, target: int) -> tuple[Machine, Child] | None:
        """The target, or the next machine, that has a worker at work; waits for one."""
        machines, deadline_s = self.stage.machines, time.monotonic() + ELIGIBLE_S
        pause = threading.Event()
        while time.monotonic() < deadline_s and not self.load.is_done:
            self.stage.journal.read()
            for step in range(len(machines)):
                machine = machines[(target + step) % len(machines)]
                if machine.number in self._frozen or machine.meant:
                    continue
                child = machine.child()
                if child is not None and child not in self._spent:
                    return machine, child
            self.lift()
            pause.wait(_LOOK_S)
        return None


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])
