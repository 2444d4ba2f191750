"""Everything that runs: Redis, S3, and machines with a supervisor each, behind a proxy.

Restarts supervisors that ended, as an init system does. Knows no faults.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from api_contracts.names import DEFAULT_MODEL
from tests.chaos import processes
from tests.chaos.machine import LEASE_S, ROOT, Machine
from tests.chaos.proxy import Proxy
from tests.chaos.proxy_modes import Disturbance, Mode
from tests.chaos.servers import RedisServer, SentinelServers
from tests.chaos.site import patches
from tests.chaos.submissions import POISON_MARK, REMOTE_MODEL, REPLY_TO
from tests.chaos.worker_logs import WorkerLogs
from worker import embedded
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


SITE = Path(__file__).resolve().parent / "site"
BUCKET, PREFIX = "chaos", "outputs"
#: Rows of one UNet call: so a picture's bytes do not depend on other tasks.
MAX_BATCH_ROWS = 1
SETTINGS = {
    "SAG_DEVICE": "cpu",
    "SAG_LOG_FORMAT": "json",
    "SAG_S3_BUCKET": BUCKET,
    "SAG_S3_PREFIX": PREFIX,
    "SAG_LEASE_S": str(LEASE_S),
    "SAG_CHECKPOINT_EVERY": "2",
    "SAG_SLOTS": "4",
    "SAG_MAX_BATCH_ROWS": str(MAX_BATCH_ROWS),
    "SAG_MAX_ATTEMPTS": "25",
    "SAG_DRAIN_TIMEOUT_S": "1",
    "SAG_S3_RETRY_S": "120",
    "SAG_STEP_TIMEOUT_S": "60",
    "SAG_REPLY_TO": json.dumps([REPLY_TO]),
    "SAG_MODELS": json.dumps(
        {
            DEFAULT_MODEL: {
                "path": str(SHIPPED_MODEL),
                "safety_checker": False,
                "defaults": {"num_inference_steps": 25, "guidance_scale": 3.0},
            },
            REMOTE_MODEL: {"path": "chaos/remote"},
        }
    ),
    "SAG_LOAD_TIMEOUT_S": "4",
    "OMP_NUM_THREADS": "1",
}
#: Pause between two checks of machines and logs, in seconds.
POLL_INTERVAL_S = 0.1
#: Longest wait for a worker to be ready, and for one to end after SIGTERM, in seconds.
READY_S, END_S = 180.0, 60.0


class Deployment:
    """A context manager: starts the servers on entry, ends all processes on exit."""

    def __init__(
        self,
        folder: Path,
        machines: int,
        extra: Mapping[str, str],
        clock_off_s: float,
        *,
        sentinel: bool = False,
    ) -> None:
        """`extra` goes into the workers' environment; the last machine's clock is shifted.

        With `sentinel` workers and clients find Redis by its sentinels, past their links; the link
        of the clients, for callers that know no sentinels, follows the primary.
        """
        self.folder, self.logs, self._sentinel = folder, WorkerLogs(), sentinel
        self._count, self._extra, self._clock_off_s = machines, extra, clock_off_s
        self._stack, self._done = ExitStack(), threading.Event()
        self._supervision = threading.Thread(target=self._supervise, name="keeper", daemon=True)
        self.machines: list[Machine] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in ("redis", "s3", "logs"):
                (self.folder / name).mkdir(parents=True)
            redis = self.folder / "redis"
            self.redis: RedisServer | SentinelServers = (
                stack.enter_context(SentinelServers(redis))
                if self._sentinel
                else stack.enter_context(RedisServer(redis))
            )
            self.s3 = stack.enter_context(embedded.s3_server(self.folder / "s3", BUCKET))
            self.proxy = stack.enter_context(Proxy())
            self.clients = self.proxy.link(self.redis.port)
            self.hub = self.proxy.link(self.redis.port)
            self.hub.disturb(Disturbance(Mode.STALL))  # it accepts and never answers
            for number in range(self._count):
                self.machines.append(self._machine(number))
                stack.callback(processes.kill_all, self.machines[-1].name)
            stack.callback(self._stop_supervising)
            self._supervision.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def clients_url(self) -> str:
        """The URL of Redis by the clients' link."""
        return f"redis://{embedded.LOOPBACK}:{self.clients.port}/0"

    @property
    def service_url(self) -> str:
        """The URL of clients of ours: that of the sentinels where there are some."""
        return self.redis.service_url if self._sentinel else self.clients_url

    def fail_over(self, *, dies: bool) -> None:
        """Change the primary: it is killed, or as an operator does."""
        assert isinstance(self.redis, SentinelServers)
        self.redis.fail_over(dies=dies, moved=self.clients.lead_to)

    def start(self, numbers: range) -> None:
        """Start machines and wait until each has a worker that is ready."""
        for number in numbers:
            machine = self.machines[number]
            machine.expect_end(0.0)
            machine.start()
        wait_until(lambda: all(self._is_ready(number) for number in numbers), READY_S)

    def drain(self) -> list[int]:
        """End all machines by SIGTERM; gives those that had to be killed."""
        for machine in self.machines:
            machine.expects_end, machine.restart_at_s = True, None
            if machine.supervisor is not None and machine.is_up():
                machine.supervisor.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + END_S
        while any(processes.marked(each.name) for each in self.machines):
            if time.monotonic() > deadline_s:
                break
            time.sleep(POLL_INTERVAL_S)
        self.logs.read()
        return [each.number for each in self.machines if processes.kill_all(each.name)]

    def _machine(self, number: int) -> Machine:
        redis = self.proxy.link(self.redis.port)
        s3 = self.proxy.link(int(self.s3.endpoint_url.rpartition(":")[2]))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SAG_", "AWS_"))
        }
        environment = {
            **inherited,
            **self.s3.environment,
            **SETTINGS,
            "SAG_BROKER_URL": (
                self.redis.service_url
                if self._sentinel
                else f"redis://{embedded.LOOPBACK}:{redis.port}/0"
            ),
            "SAG_S3_ENDPOINT_URL": f"http://{embedded.LOOPBACK}:{s3.port}",
            "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}",
            "HF_ENDPOINT": f"http://{embedded.LOOPBACK}:{self.hub.port}",
            "HF_HOME": str(self.folder / "hub"),
            "HF_HUB_ETAG_TIMEOUT": "600",
            "HF_HUB_DOWNLOAD_TIMEOUT": "600",
            patches.POISON: POISON_MARK,
            **self._extra,
        }
        if self._clock_off_s and number == self._count - 1:
            environment[patches.CLOCK] = str(self._clock_off_s)
        return Machine(number, redis, s3, environment, self.folder / "logs", self.logs)

    def _is_ready(self, number: int) -> bool:
        log = self.machines[number].log
        return log is not None and self.logs.ready(log) is not None

    def _supervise(self) -> None:
        while not self._done.wait(POLL_INTERVAL_S):
            self.logs.read()
            for machine in self.machines:
                machine.supervise()

    def _stop_supervising(self) -> None:
        self._done.set()
        self._supervision.join()


def wait_until(
    condition: Callable[[], bool], within_s: float, every_s: float = POLL_INTERVAL_S
) -> None:
    """Return when `condition` holds; raises TimeoutError."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(every_s)
