"""Sends hostile messages to a real worker process, with a real Redis and a real S3."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
from redis import Redis

from api_contracts import GenerationClient
from api_contracts.events import EVENT, Failed
from api_contracts.names import queue_lists
from tests.fuzz import hostile_messages
from tests.fuzz.campaign import resident_mib
from tests.fuzz.pipeline import Pipeline, can_be_answered
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Messages that are queued at once.
BATCH = 500
#: Longest wait for a batch, and for a picture, in seconds.
BATCH_S, PICTURE_S = 600.0, 300.0
GOOD = {"prompt": "a large red circle on a white background", "seed": 7}
#: Every key that the service may create, with namespace `sag`.
KEYS = re.compile(
    r"sag:\{[A-Za-z0-9._-]{1,128}\}:(task|events)|sag:(open|wishes|workers|pool|primary|reconciler|scratch)"
    r"|sag\.ready\.generate\.default|sag\.wake\.[^:]+:[^:]+:[0-9a-f]+"
    r"|sag\.unacked(_index)?"
    r"|celery-task-meta-[A-Za-z0-9._-]{1,128}|generate\.default(\x06\x16[1-9])?"
    r"|_kombu\.binding(_permanent|_deadlines)?(\.generate\.default|\.(reply\.)?celery\.pidbox)?"
    r"|[\w.@-]+\.celery\.pidbox(\x06\x16[1-9])?"
)
#: One step for each picture, so that a request that happens to be valid takes little time.
MODELS = json.dumps({
    "default": {"path": str(SHIPPED_MODEL), "safety_checker": False,
                "defaults": {"num_inference_steps": 1, "guidance_scale": 3.0}},
})  # fmt: skip


@dataclass
class Report:
    """What was sent to a worker, and how the tasks ended."""

    messages: int = 0
    rejected: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    #: Messages done, seconds and the worker's resident memory in MiB.
    marks: list[tuple[int, float, float]] = field(default_factory=list)


@dataclass
class Daemon:
    """A worker with its Redis and a client."""

    redis: Redis
    client: GenerationClient
    log: Path
    process: int

    def picture(self) -> str:
        """The checksum of one fixed picture."""
        return self.client.submit(GOOD).result(PICTURE_S).images[0].sha256

    def rejections(self) -> int:
        """Rejected messages, as the log counts them."""
        return self.log.read_text(errors="replace").count("rejected a message (")


@contextmanager
def daemon() -> Iterator[Daemon]:
    """A worker with servers of its own."""
    with embedded.scratch() as folder:
        for name in ("redis", "s3"):
            (folder / name).mkdir()
        log = folder / "worker.log"
        with (
            embedded.redis_server(folder / "redis") as url,
            embedded.s3_server(folder / "s3", "sag") as s3,
            embedded.running(
                [sys.executable, "-m", "worker", "run"],
                log,
                lambda: "ready." in log.read_text(),
                {
                    **s3.environment,
                    "SAG_BROKER_URL": url,
                    "SAG_DEVICE": "cpu",
                    "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
                    "SAG_MODELS": MODELS,
                    "SAG_MAX_STEPS": "2",
                    "SAG_MAX_SIDE_PX": "64",
                    "SAG_MAX_IMAGES": "1",
                },
                stop_s=60,
            ) as supervisor,
            GenerationClient(url) as client,
            Redis.from_url(url, protocol=2) as redis,
        ):
            yield Daemon(redis, client, log, _worker_of(supervisor.pid))


def _worker_of(supervisor: int) -> int:
    """The worker process: the child of the supervisor's fork server."""
    beneath = psutil.Process(supervisor).children(recursive=True)
    (worker,) = [each for each in beneath if each.ppid() != supervisor]
    return int(worker.pid)


def send_messages(to: Daemon, seed: int, count: int) -> Iterator[Report]:
    """Push `count` entries in batches; gives the report after each, and checks all ends at last.

    Raises AssertionError where a law is broken.
    """
    before, report, began_s = to.picture(), Report(), time.monotonic()
    pipeline, rejected = Pipeline(), to.rejections()
    expected: dict[str, str] = {}
    report.marks.append((0, 0.0, resident_mib(to.process)))
    while report.messages < count:
        numbers = range(report.messages, min(report.messages + BATCH, count))
        entries = {
            number: hostile_messages.entry(seed, number, f"fuzz-{seed}-{number}")
            for number in numbers
        }
        for entry in entries.values():
            kind = pipeline.take(entry, whole=False).kind
            report.rejected += kind == "rejected"
            if can_be_answered(entry):
                expected[json.loads(entry)["headers"]["id"]] = kind
        for entry in entries.values():
            to.redis.lpush("generate.default", entry)
        _wait_until_consumed(to)
        report.messages += len(entries)
        seconds = time.monotonic() - began_s
        report.marks.append((report.messages, seconds, resident_mib(to.process)))
        yield report
    report.ended = _check_ends(to, expected)
    assert to.rejections() - rejected == report.rejected
    assert to.picture() == before
    _wait_until_consumed(to)
    yield report


def _wait_until_consumed(to: Daemon) -> None:
    """Wait until no message waits and none is unacknowledged."""
    until_s = time.monotonic() + BATCH_S
    while any(to.redis.llen(name) for name in queue_lists("default")) or to.redis.hlen(UNACKED):
        assert time.monotonic() < until_s, "messages are left"
        time.sleep(0.1)


def _check_ends(to: Daemon, expected: dict[str, str]) -> dict[str, int]:
    """Check that every task has ended correctly with a valid event, and that no message is left."""
    ended: dict[str, int] = {}
    for task_id, kind in expected.items():
        last: Any = to.redis.xrevrange(to.client.keys.events(task_id), count=1)
        assert last, f"{task_id} has no event"
        event = EVENT.validate_json(last[0][1][b"event"])
        assert event.is_terminal, task_id
        code = str(event.error.code) if isinstance(event, Failed) else event.type
        assert code != "internal", task_id
        if kind == "refused":
            assert code in ("invalid_request", "unknown_model", "unsupported_scheduler"), task_id
        ended[code] = ended.get(code, 0) + 1
    unknown = [key for key in to.redis.scan_iter(count=1000) if not KEYS.fullmatch(key.decode())]
    assert not unknown, unknown[:10]
    assert not to.redis.zcard("sag:open")
    assert not to.redis.zcard(UNACKED_INDEX)
    return ended
