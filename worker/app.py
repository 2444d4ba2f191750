"""The Celery application and all its settings; nothing else in the project configures Celery."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from celery import Celery, signals
from kombu import Exchange, Queue

from api_contracts.connection import celery_tls, connect
from api_contracts.names import DEFAULT_MODEL, PRIORITIES, TRANSPORT_OPTIONS, queue_name
from worker import gpu, log
from worker.celery_state import CeleryState
from worker.engine.engine import Engine
from worker.execute import Executor
from worker.publisher import Publisher
from worker.settings import Settings, unknown_variables
from worker.shelf import Shelf
from worker.status import Status
from worker.storage import Storage
from worker.tasks import Generate

logger = logging.getLogger(__name__)


#: A step that can't be told in seconds is not worth telling.
_IMPATIENT = {
    "result_backend_always_retry": False,
    "result_backend_transport_options": {"retry_policy": {"max_retries": 0}},
    "redis_socket_timeout": 2,
    "redis_socket_connect_timeout": 2,
}


def create_app(settings: Settings) -> Celery:
    """A worker's application. Connects to nothing and loads no torch until a task comes."""
    app = Celery("sag-worker", set_as_current=False)
    app.conf.update(_configuration(settings))
    executor = _executor(settings)
    app.register_task(Generate(executor))
    _follow_signals(executor, settings)
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, each for a reason that was measured or that an outage taught."""
    queues = [queue_name(alias) for alias in settings.models]
    return {
        "broker_url": settings.broker_url.get_secret_value(),
        "result_backend": f"worker.results:Backend+{settings.results.get_secret_value()}",
        # Neither a message nor an outage may end the worker or keep a slot: see their modules.
        "broker_transport": "worker.transport:Transport",
        "worker_consumer": "worker.intake:TolerantConsumer",
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_queues": [Queue(name, Exchange(name), routing_key=name) for name in queues],
        "task_default_queue": queue_name(DEFAULT_MODEL),
        "task_create_missing_queues": False,
        # A thread for each slot and one engine thread that owns the device: uploads overlap
        # denoising, and the model stays loaded.
        "worker_pool": "worker.pool:TaskPool",
        "worker_concurrency": settings.slots,
        # A message is acknowledged when its task has ended, and none is taken that can't start.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # True, Celery's announced default, loses tasks when Redis restarts.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": TRANSPORT_OPTIONS | _restoring(settings),
        **celery_tls("broker_use_ssl", settings.broker_url.get_secret_value()),
        **celery_tls("redis_backend_use_ssl", settings.results.get_secret_value()),
        "redis_socket_timeout": 30,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 10,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 60,
        "result_expires": settings.record_ttl_s,
        "task_track_started": True,
        "task_queue_max_priority": len(PRIORITIES),
        # What `sag-worker health` asks over: a worker that answers has a consumer that works.
        "worker_enable_remote_control": True,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
    }


def _restoring(settings: Settings) -> dict[str, Any]:
    """When a message that a worker took and never ended is given to another."""
    return {
        "visibility_timeout": settings.visibility_timeout_s,
        # Look for timed-out messages every 10 s; kombu's own throttle makes it 100.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
    }


def _executor(settings: Settings) -> Executor:
    owner = f"{socket.gethostname()}:{os.getpid()}"
    events = connect(settings.events.get_secret_value())
    status = Status(events, settings.keys, owner, settings.record_ttl_s)
    progress = Celery("sag-progress", set_as_current=False)
    progress.conf.update(_configuration(settings) | _IMPATIENT)

    def store(task_id: str, meta: dict[str, int]) -> None:
        progress.backend.store_result(task_id, meta, "PROGRESS")

    device = gpu.resolve(settings.device)
    return Executor(
        settings,
        status,
        Publisher(status, CeleryState(store)),
        Engine(
            settings.specs,
            device,
            settings.offload,
            max_models=settings.max_models,
            max_batch_rows=settings.max_batch_rows,
            compiled=settings.compile,
        ),
        Shelf(Storage(settings)),
    )


def _follow_signals(executor: Executor, settings: Settings) -> None:
    """Log at start; drain on the first signal to stop; end the threads after the last task."""

    def start_log(**_: object) -> None:
        log.configure(settings.log_format)

    def say_settings(**_: object) -> None:
        for name, value in settings.shown().items():
            logger.info("%s=%s", name, value)
        for name in unknown_variables():
            logger.warning("%s is set and means nothing to this version", name)

    def drain(**_: object) -> None:
        logger.info("leaving: tasks may end within %g s", settings.drain_timeout_s)
        timer = threading.Timer(settings.drain_timeout_s, executor.drain)
        timer.daemon = True
        timer.start()

    def close(**_: object) -> None:
        executor.close()

    signals.setup_logging.connect(start_log, weak=False)
    signals.celeryd_after_setup.connect(say_settings, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(close, weak=False)


def work(settings: Settings, name: str) -> int:
    """Be a worker, until a signal; `name` is the part of its node name before the host."""
    options = ["--without-gossip", "--without-mingle", "--loglevel=INFO"]
    status = create_app(settings).worker_main(["worker", f"--hostname={name}@%h", *options])
    return int(status or 0)


def __getattr__(name: str) -> Celery:
    """`app`, made from the environment when `celery -A worker.app` first asks for it."""
    if name in ("app", "celery"):
        globals()["app"] = globals()["celery"] = create_app(Settings())
        return globals()[name]
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
