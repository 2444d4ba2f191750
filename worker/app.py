"""The worker's Celery application and its settings; clients' broker options are in `names`."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.worker import state
from kombu import Exchange, Queue

from api_contracts.client.records import Records
from api_contracts.names import (
    DEFAULT_MODEL,
    PRIORITIES,
    queue_name,
)
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.cluster import CLUSTER, is_cluster
from api_contracts.redis_io.connection import connect_impatiently
from worker import logs
from worker.broker import remote_control
from worker.broker.held_requests import lowest_priority
from worker.broker.option_function import OptionFunction
from worker.config.environment import read, unknown_variables
from worker.execution.celery_task import Generate
from worker.exit_codes import INVALID
from worker.recovery.timing import message_lease_s
from worker.runtime import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.settings import Settings
    from worker.record.celery_state import State

logger = logging.getLogger(__name__)

#: Time between two events that tell Flower that this worker lives, in seconds. Celery's default of
#: 2 is a tenth of what an idle worker may ask of Redis.
HEARTBEAT_S = 10
#: Longest wait for each Redis to say whether it is a cluster, in seconds; it is asked twice.
CLUSTER_ANSWER_S = 2.0


def create_app(settings: Settings, owner: str | None = None) -> Celery:
    """A worker's application. Connects to nothing and loads no torch before the first task.

    `owner` names this process in records and events; generated unless given.
    """
    owner = owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    app = _celery("sag-worker", settings)
    process = WorkerProcess(settings, owner, _store(settings))
    app.conf.broker_transport_options |= {
        "owner": owner,
        "lease_s": message_lease_s(settings.lease_s),
        "wait_state": process.wait_state,
        "may_take": OptionFunction(lambda: process.gate.refusal is None),
        "lowest_priority": OptionFunction(lambda: lowest_priority(settings.slots)),
    }
    app.register_task(Generate(process.executor))
    _follow_signals(process, settings)
    return app


def _celery(name: str, settings: Settings) -> Celery:
    return celery_app(name, settings.broker_url.get_secret_value(), **_configuration(settings))


def _configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings but for the broker's; comments give the reasons."""
    results = RedisAddress.parse(settings.result_redis_url.get_secret_value())
    options = {"socket_timeout": 2, "socket_connect_timeout": 2, **results.options}
    return {
        "result_backend": f"worker.broker.celery_overrides:Backend+{results.url}",
        # No message and no outage may stop the worker or occupy a slot: see their modules.
        "broker_transport": "worker.broker.transport:Transport",
        "worker_consumer": "worker.broker.celery_overrides:TolerantConsumer",
        "accept_content": ["json"],
        "result_serializer": "json",
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in settings.queues],
        "task_default_queue": queue_name(DEFAULT_MODEL),
        "task_create_missing_queues": False,
        # A thread for each slot and one engine thread that owns the device: uploads overlap
        # denoising, and the model stays loaded.
        "worker_pool": "worker.broker.celery_overrides:TaskPool",
        "worker_concurrency": settings.slots + settings.reserved_slots,
        # A message is acknowledged when its task has ended, and fetched only when a slot is free.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # True, Celery's announced default, loses tasks when Redis restarts.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        **results.celery_tls("redis_backend_use_ssl"),
        # Of the result backend: a write gives up in seconds and frees its slot; see celery_task.
        "redis_socket_timeout": options["socket_timeout"],
        "redis_socket_connect_timeout": options["socket_connect_timeout"],
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": options.get("health_check_interval", 10),
        "redis_client_name": options.get("client_name"),
        # `celery_task` and the publisher retry.
        "result_backend_transport_options": {
            "address": results,
            "retry_policy": {"max_retries": 0},
        },
        # One backend for all slots, whose threads would each have a connection of their own: Redis
        # accepts 10,000 connections by default, 300 workers.
        "result_backend_thread_safe": True,
        "result_expires": settings.record_ttl_s,
        # Celery would write STARTED before the task's body, and fail the task when it can't.
        "task_track_started": False,
        "task_queue_max_priority": len(PRIORITIES),
        # A rate limit would hold messages whose leases nobody renews.
        "worker_disable_rate_limits": True,
        # `sag-worker health` uses it: a worker that answers has a working consumer.
        "worker_enable_remote_control": True,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
    }


def _store(settings: Settings) -> Callable[[Mapping[str, State]], None]:
    """A function that writes Celery's states of running tasks, and raises within seconds."""
    progress = _celery("sag-progress", settings)

    def store(states: Mapping[str, State]) -> None:
        progress.backend.store_running(states)

    return store


def _follow_signals(process: WorkerProcess, settings: Settings) -> None:
    """Start the process with Celery's worker, drain it on stop signals, close it on shutdown."""

    def configure_log(**_: object) -> None:
        logs.configure(settings.log_format)

    def log_settings(**_: object) -> None:
        for name, value in settings.shown().items():
            logger.info("%s=%s", name, value)
        for name in unknown_variables():
            logger.warning("%s is set but unknown to this version: ignored", name)

    def start(**_: object) -> None:
        refuse_clusters(settings)
        events = settings.events_redis_url.get_secret_value()
        records = Records(events, settings.namespace)
        remote_control.install(records, process.state, process.drain)
        process.start()

    def drain(**_: object) -> None:
        process.drain()

    def close(**_: object) -> None:
        process.close()

    signals.setup_logging.connect(configure_log, weak=False)
    signals.celeryd_after_setup.connect(log_settings, weak=False)
    signals.celeryd_after_setup.connect(start, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(close, weak=False)


def refuse_clusters(settings: Settings) -> None:
    """End the process, as for a wrong setting, if a Redis of the settings is a Redis Cluster.

    One that does not answer now is taken for what it should be: the worker waits for it.
    """
    for name, url in settings.redis_urls.items():
        with connect_impatiently(url.get_secret_value(), CLUSTER_ANSWER_S) as redis:
            if is_cluster(redis):
                logger.critical("%s: %s", name, CLUSTER)
                raise SystemExit(INVALID)


def work(settings: Settings, name: str, owner: str | None = None) -> int:
    """Run a worker until a signal; `name` is the part of its node name before the host.

    Returns the exit status. Not by Celery's command line, which reads variables of other programs:
    `APP`, `BROKER_URL`, `LOADER`.
    """
    worker = create_app(settings, owner).Worker(
        hostname=f"{name}@{socket.gethostname()}",
        loglevel="INFO",
        heartbeat_interval=HEARTBEAT_S,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(state.should_stop or worker.exitcode or 0)


def __getattr__(name: str) -> Celery:
    """`app`, created from the environment when `celery -A worker.app` first reads it."""
    if name in ("app", "celery"):
        globals()["app"] = globals()["celery"] = create_app(read())
        return globals()[name]
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
