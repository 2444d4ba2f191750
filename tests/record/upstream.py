"""Private functions of kombu and Celery that this project replaces or relies on.

An upgrade of either is a checklist: for each function that has changed, compare it with the file
beside it, then store its new digest.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from functools import reduce
from importlib import import_module, metadata
from typing import Any, NamedTuple

OPTION = "worker/broker/option_function.py"
TRANSPORT = "worker/broker/transport.py"
OVERRIDES = "worker/broker/celery_overrides.py"
HELD = "worker/broker/held_requests.py"
VALIDATE = "worker/broker/validate_message.py"
REMOTE = "worker/broker/remote_control.py"
CELERY_APP = "api_contracts/redis_io/celery_app.py"
ADDRESSED = "api_contracts/redis_io/transport.py"


class Upstream(NamedTuple):
    """A function of kombu's or Celery's."""

    #: `module:Class.function`.
    name: str
    #: The file of ours that replaces it, calls it or knows what it does.
    ours: str
    #: Of its source, see `digest_of`.
    digest: str


REDIS, VIRTUAL = "kombu.transport.redis", "kombu.transport.virtual.base"
FUNCTIONS = [
    # Replaced.
    Upstream(f"{REDIS}:QoS.append", TRANSPORT, "4b4b426ec8acbe0d"),
    Upstream(f"{REDIS}:QoS.ack", TRANSPORT, "a6a293d96aabf1d5"),
    Upstream(f"{REDIS}:QoS.reject", TRANSPORT, "93af6bf8771827a1"),
    Upstream(f"{REDIS}:QoS.restore_visible", TRANSPORT, "6da9e6fef02e7b58"),
    Upstream(f"{REDIS}:Channel.__init__", TRANSPORT, "a511da08a790083b"),
    Upstream(f"{REDIS}:Channel.conn_or_acquire", TRANSPORT, "01ab44dd770603a6"),
    Upstream(f"{REDIS}:Channel._get_pool", ADDRESSED, "af961a03ae3ebb6c"),
    Upstream(f"{REDIS}:Channel._brpop_start", TRANSPORT, "b8c18935c62e35af"),
    Upstream(f"{REDIS}:Channel._brpop_read", TRANSPORT, "f073dbcb18d71759"),
    Upstream(f"{REDIS}:Transport.register_with_event_loop", TRANSPORT, "3bdcd1f7f6027a89"),
    Upstream(
        "celery.worker.consumer.consumer:Consumer.on_decode_error", OVERRIDES, "19f6cb0c22df7455"
    ),
    Upstream(
        "celery.worker.consumer.consumer:Consumer.create_task_handler",
        OVERRIDES,
        "3107b2ffefc9347f",
    ),
    Upstream("celery.concurrency.thread:TaskPool.on_apply", OVERRIDES, "d11f09ccc8ac3264"),
    Upstream("celery.backends.redis:RedisBackend._set_with_state", OVERRIDES, "f2739e9621f14f6b"),
    Upstream("celery.backends.redis:RedisBackend._params_from_url", OVERRIDES, "186f7bca0883fe0e"),
    Upstream("celery.backends.redis:RedisBackend._get_pool", OVERRIDES, "d2e3af46e12e4bd7"),
    Upstream("celery.worker.control:revoke", REMOTE, "25c3bde7a118a14d"),
    Upstream("celery.worker.control:terminate", REMOTE, "31f08532aef33ad2"),
    Upstream("celery.worker.control:shutdown", REMOTE, "dd7463254827332c"),
    *(
        Upstream(f"celery.worker.control:{name}", REMOTE, digest)
        for name, digest in {
            "hello": "53214c2c5982352f",
            "rate_limit": "a9ab55fb9973fea2",
            "time_limit": "422ef75da241a0f6",
            "revoke_by_stamped_headers": "faad3c0081e03e2e",
            "pool_grow": "68d54192e2ede502",
            "pool_shrink": "984ccdef63d217b7",
            "pool_restart": "ae6030afe7b4ae38",
            "autoscale": "814fb2bdae182f01",
            "add_consumer": "2c405aec2d526b21",
            "cancel_consumer": "6ec2c6eb2c29daca",
        }.items()
    ),
    Upstream("celery.loaders.base:BaseLoader.read_configuration", CELERY_APP, "5efc15462e81a6e3"),
    # Called.
    Upstream(f"{REDIS}:QoS._remove_from_indices", TRANSPORT, "5940a5c23a877463"),
    Upstream(f"{REDIS}:Channel._connparams", ADDRESSED, "7cda548c60354a60"),
    Upstream(f"{REDIS}:Channel._create_client", ADDRESSED, "376ef74d24a41659"),
    Upstream(f"{REDIS}:Channel._flush_brpop_reauth", TRANSPORT, "493267fe578f25b3"),
    Upstream(f"{REDIS}:Channel._q_for_pri", TRANSPORT, "b03cd0cf60dd7927"),
    Upstream(f"{REDIS}:_socket_readable", TRANSPORT, "a057f013e4c49c71"),
    Upstream(f"{VIRTUAL}:QoS.append", TRANSPORT, "465769e97a71c6e1"),
    Upstream(f"{VIRTUAL}:QoS.ack", TRANSPORT, "2ec9d3d075fabb40"),
    Upstream(f"{VIRTUAL}:Transport._deliver", TRANSPORT, "007e449e8e072a75"),
    Upstream("celery.backends.redis:RedisBackend._create_client", OVERRIDES, "763f11b5c8f04ebb"),
    Upstream("celery.backends.redis:RedisBackend.ensure", OVERRIDES, "602ae36d0f9b0761"),
    Upstream("celery.backends.base:Backend.encode", OVERRIDES, "fab263fda36aeac5"),
    Upstream("celery.worker.state:task_ready", OVERRIDES, "ad25f2985520adf2"),
    Upstream("celery.worker.control:Panel.register", REMOTE, "7d54f3fb93ba9e21"),
    Upstream("celery.app.base:Celery._get_default_loader", CELERY_APP, "723830402def2c74"),
    Upstream("kombu.utils.json:JSONEncoder.default", OPTION, "817fab82f759ab79"),
    # What calls the functions above, reads what they set, or is fed with what they return.
    Upstream(f"{REDIS}:MultiChannelPoller.on_poll_start", TRANSPORT, "e30dfe30d00cda88"),
    Upstream(f"{REDIS}:MultiChannelPoller._register_BRPOP", TRANSPORT, "953b83d16e928e35"),
    Upstream(f"{REDIS}:MultiChannelPoller.on_readable", TRANSPORT, "412854aa5482bf1c"),
    Upstream(f"{REDIS}:MultiChannelPoller.maybe_check_brpop_health", TRANSPORT, "8debf3ba9a0a47ac"),
    Upstream(f"{REDIS}:Channel._on_connection_disconnect", TRANSPORT, "b9778671f2d8148a"),
    Upstream(f"{REDIS}:Channel.close", TRANSPORT, "8b98e8d4dc50ba00"),
    Upstream(f"{VIRTUAL}:QoS.restore_unacked_once", TRANSPORT, "31b570aeef0a4cc8"),
    Upstream("kombu.utils.scheduling:priority_cycle.rotate", TRANSPORT, "dfc33cc050bc29e5"),
    Upstream("kombu.utils.scheduling:round_robin_cycle.consume", TRANSPORT, "f6b459b2ae49d1af"),
    Upstream(f"{VIRTUAL}:Message.__init__", VALIDATE, "8a84e09d585dde57"),
    Upstream("kombu.message:Message.__init__", VALIDATE, "f1ac5fc5e9e85574"),
    Upstream("kombu.messaging:Consumer._receive_callback", OVERRIDES, "0f23a58174236966"),
    Upstream("celery.worker.request:Request.__init__", VALIDATE, "ba563d6610efd143"),
    Upstream("celery.app.trace:fast_trace_task", VALIDATE, "52c76aab90e1656f"),
    Upstream("celery.concurrency.thread:apply_target", OVERRIDES, "587f70580295464c"),
    Upstream("celery.worker.request:Request.execute_using_pool", OVERRIDES, "b63ef23a1218ae02"),
    Upstream("celery.worker.request:Request.reject", OVERRIDES, "3a6916e37f306c16"),
    Upstream(
        "celery.backends.base:Backend._get_result_meta",
        "worker/broker/lua/set_state.lua",
        "b3de3caa17ae65a5",
    ),
    Upstream(
        "celery.backends.base:KeyValueStoreBackend._store_result", OVERRIDES, "f43059ebe446d43d"
    ),
    Upstream("celery.backends.base:Backend.store_result", OVERRIDES, "ba5abf90713fc98a"),
    Upstream("celery.backends.base:Backend.encode_result", OVERRIDES, "6551ba5ea50d3a95"),
    Upstream("celery.worker.state:task_reserved", HELD, "d5a1d0414f0acf80"),
    # Celery compares the same set with the number of threads.
    Upstream("celery.worker.consumer.tasks:Tasks.start", HELD, "4ccfe77dacc2b8ea"),
    # After a reconnect the set has the tasks that run.
    Upstream("celery.worker.consumer.consumer:Consumer.on_close", HELD, "39f6009908fc18f8"),
    Upstream("celery.worker.state:maybe_shutdown", "worker/runtime.py", "e15d0ed41e2cd309"),
    Upstream("celery.apps.worker:_shutdown_handler", REMOTE, "901e0a5a2b3d0237"),
    Upstream("celery.worker.worker:WorkController.stop", "worker/app.py", "edf1eea1921a46f5"),
]


def digest_of(name: str) -> str:
    """The digest of a function's source text, which does not depend on Python's version."""
    module, _, path = name.partition(":")
    function: Any = reduce(getattr, path.split("."), import_module(module))
    text = textwrap.dedent(inspect.getsource(function))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def change_of(function: Upstream) -> str | None:
    """What to do about a function that is not the one that we know; None where it is."""
    try:
        digest = digest_of(function.name)
    except (ImportError, AttributeError):
        digest = "gone"
    if digest == function.digest:
        return None
    package = function.name.partition(".")[0]
    return (
        f"{function.name.replace(':', '.')} changed in {package} {metadata.version(package)}: "
        f"compare with {function.ours}, then update the digest to {digest}"
    )
