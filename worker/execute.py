"""One delivery of a task, from the message to its outcome, as a row of named steps."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import Fault, InvalidRequest, TaskError
from api_contracts.parse import parse_request
from worker import endings
from worker.engine.job import Control, JobStopped, Step, Stop
from worker.errors import BadRequest, TaskFault
from worker.orders import Order
from worker.outcome import Cancelled, Dropped, Expired, Failed, Outcome, Requeued, Succeeded
from worker.status import Claim, Ended, Held

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.job import JobResult
    from worker.publisher import Publisher
    from worker.settings import Settings
    from worker.shelf import Shelf
    from worker.status import Status

logger = logging.getLogger(__name__)

#: Time between two `loading` events, in seconds.
LOADING_EVERY_S = 1.0
#: Longest request that is kept in a record whose request is refused, in characters.
KEPT_CHARS = 4_000


@dataclass(frozen=True)
class Delivery:
    """What came in a message."""

    task_id: str
    request: Any
    redelivered: bool
    #: What is wrong with the message around the request.
    fault: Fault | None = None
    #: The message's delivery tag, which it keeps when it is delivered again.
    message: str = ""


class Executor:
    """Does deliveries, on as many threads as the worker has slots."""

    def __init__(
        self,
        settings: Settings,
        status: Status,
        publisher: Publisher,
        engine: Engine,
        shelf: Shelf,
    ) -> None:
        """All parts connect or start on first use."""
        self._settings, self._status, self._publisher = settings, status, publisher
        self._engine, self._shelf = engine, shelf
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Control, Future[Outcome]]] = {}
        self._draining = False

    def execute(self, delivery: Delivery) -> Outcome:
        """Check, claim, denoise, store, finish. Raises only when Redis stays away."""
        with self._lock:
            running = self._running.get(delivery.task_id)
            if running is None:
                control, done = Control(), Future[Outcome]()
                self._running[delivery.task_id] = control, done
        if running is not None:
            if not delivery.redelivered:
                return self._dropped(delivery, "a duplicate: this process is doing it")
            # The broker gave the message out again while this process works on it: the second
            # delivery waits for the first and ends as it does, so that neither is lost.
            return running[1].result()
        try:
            outcome = self._attempt(delivery, control)
        except BaseException as error:
            done.set_exception(error)
            raise
        else:
            done.set_result(outcome)
            return outcome
        finally:
            with self._lock:
                del self._running[delivery.task_id]

    def drain(self) -> None:
        """Give back every task that is not done, at its next step."""
        self._draining = True
        with self._lock:
            controls = [control for control, _ in self._running.values()]
        for control in controls:
            control.request(Stop.DRAINED)

    def close(self) -> None:
        """End the threads, when no delivery is left."""
        self._engine.close()
        self._publisher.close()

    def _attempt(self, delivery: Delivery, control: Control) -> Outcome:
        checked = self._check(delivery)
        order = checked if isinstance(checked, Order) else None
        claim = self._claim(delivery, order)
        match claim:
            case Held(owner=owner):
                return self._dropped(delivery, f"a duplicate: {owner} is doing it")
            case Ended():
                earlier = endings.earlier(claim)
                logger.info("task %s: not run, it has %s before", delivery.task_id, earlier)
                return earlier
        logger.info(
            "task %s attempt %d: claimed (fence %d)", claim.task_id, claim.attempt, claim.fence
        )
        match claim.answer:
            case "cancelled":
                outcome: Outcome = Cancelled(0)
            case "expired":
                outcome = Expired(0)
            case "exhausted":
                outcome = Failed(endings.exhausted(claim))
            case _:
                outcome = (
                    self._work(claim, checked, control)
                    if isinstance(checked, Order)
                    else Failed(checked)
                )
        return self._finish(claim, order, outcome)

    def _dropped(self, delivery: Delivery, reason: str) -> Dropped:
        logger.info("task %s: not run, %s", delivery.task_id, reason)
        return Dropped(reason)

    def _check(self, delivery: Delivery) -> Order | TaskError:
        """The order in the message, or why there is none."""
        if delivery.fault is not None:
            return BadRequest(delivery.fault).error
        try:
            request = parse_request(delivery.request)
            return Order.of(request, delivery.task_id, self._settings)
        except InvalidRequest as error:
            return BadRequest(*error.faults).error
        except TaskFault as fault:
            return fault.error

    def _claim(self, delivery: Delivery, order: Order | None) -> Claim | Held | Ended:
        started = None
        if order is not None:
            started = {
                "model": order.request.model,
                "device": self._engine.device,
                "resumed_from_step": None,
                "metadata": order.request.metadata,
            }
        return self._status.claim(
            delivery.task_id,
            started=started,
            request=json.dumps(order.request.to_wire()) if order else _kept(delivery.request),
            deadline_s=order.request.deadline_s if order else None,
            max_attempts=self._settings.max_attempts,
            redelivered=delivery.redelivered,
            message=delivery.message,
        )

    def _work(self, claim: Claim, order: Order, control: Control) -> Outcome:
        """Denoise and store; what nobody foresaw becomes `internal`."""
        deadline_s = order.request.deadline_s
        if deadline_s is not None:
            left_s = claim.submitted_at_s + deadline_s - claim.claimed_at_s
            control.deadline_s = time.monotonic() + left_s
        control.on_step = lambda step: self._tell_step(claim, order, step)
        if self._draining:
            control.request(Stop.DRAINED)
        self._publisher.watch(claim, control)
        begun_s = time.monotonic()
        try:
            made = self._denoise(claim, order, control)
            fields = {"images": len(made.pictures), "metadata": order.request.metadata}
            self._publisher.post(claim, "uploading", fields)
            return Succeeded(self._shelf.store(claim, order, made, begun_s))
        except JobStopped as stopped:
            return endings.stopped(stopped)
        except TaskFault as fault:
            return Failed(fault.error)
        except Exception as error:
            logger.exception("task %s failed for a reason that is ours", claim.task_id)
            return Failed(endings.internal(error))
        finally:
            self._publisher.release(claim)

    def _denoise(self, claim: Claim, order: Order, control: Control) -> JobResult:
        """Wait for the engine, and tell the caller while it builds its pipeline."""
        control.obey(0)
        job = self._shelf.fetch(order)
        control.obey(0)
        future = self._engine.submit(job, control)
        while True:
            try:
                return future.result(timeout=LOADING_EVERY_S)
            except FutureTimeout:
                if future.done():
                    return future.result()
                if control.asked() is not None and future.cancel():
                    control.obey(0)  # it had not begun
                if (seconds := self._engine.loading_s) is not None:
                    fields = {
                        "seconds_so_far": round(seconds, 3), "metadata": order.request.metadata,
                    }  # fmt: skip
                    self._publisher.post(claim, "loading", fields)

    def _tell_step(self, claim: Claim, order: Order, step: Step) -> None:
        last = step.step == step.total_steps
        if not last and step.preview is None and step.step % order.request.callback_steps:
            return
        fields = {
            "step": step.step,
            "total_steps": step.total_steps,
            "eta_s": step.eta_s,
            "preview": step.preview,
            "metadata": order.request.metadata,
        }
        self._publisher.post(claim, "progress", fields)

    def _finish(self, claim: Claim, order: Order | None, outcome: Outcome) -> Outcome:
        """Write the end behind the fence; a claim that was overtaken ends as `Dropped`."""
        who = f"task {claim.task_id} attempt {claim.attempt}"
        metadata = {"metadata": order.request.metadata} if order else {}
        if isinstance(outcome, Dropped):
            logger.warning("%s: stopped, %s", who, outcome)
            return outcome
        if isinstance(outcome, Requeued):
            fields = {"reason": f"worker drained at step {outcome.step}", **metadata}
            ours = self._status.requeue(claim, fields)
        else:
            status, fields = endings.terminal(outcome)
            kept: Any = fields.get("result") or fields.get("error") or fields
            ours = self._status.finish(claim, status, kept, {**fields, **metadata})
        if not ours:
            logger.warning("%s: %s, discarded: another worker has claimed it", who, outcome)
            return Dropped("another worker has claimed it")
        logger.info("%s: %s", who, outcome)
        return outcome


def _kept(request: object) -> str:
    """What a record keeps of a request that is refused."""
    try:
        return json.dumps(request)[:KEPT_CHARS]
    except (TypeError, ValueError, RecursionError):
        return repr(type(request))
