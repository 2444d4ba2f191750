"""Sentinels promote a replica: every kind of connection goes on with the new primary."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api_contracts import AsyncGenerationClient, GenerationClient, ServiceUnavailable
from api_contracts.names import Keys, queue_name
from api_contracts.redis_io import aio_pools, connection, pools
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.connection import connect, connect_impatiently
from tests import sentinels
from tests.hostile.guarded import wheel_redis
from tests.record import owners
from tests.record.box import Box
from tests.redis_process import until
from worker.app import create_app
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.config.settings import Settings
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sentinels.Watched]:
    """Three Redis and three sentinels, which have a password."""
    folder = tmp_path_factory.mktemp("watched")
    with sentinels.Watched(folder, wheel_redis(), password="asked!") as running:
        yield running


@pytest.fixture
def whole(watched: sentinels.Watched) -> sentinels.Watched:
    """The group, when the primary has a replica again."""
    for node in watched.nodes:
        if not node.is_up:
            node.start()
    watched.wait_for_replicas(1)
    return watched


def fall_over(watched: sentinels.Watched) -> object:
    """Promote a replica, as an operator does."""
    return watched.fail_over()


def die(watched: sentinels.Watched) -> object:
    """Kill the primary's process."""
    return watched.kill_primary()


def until_answered(call: Callable[[], Any]) -> Any:
    """The result of a call that may fail while there is no primary."""
    found: list[Any] = []

    def answered() -> bool:
        try:
            found.append(call())
        except connection.REDIS_UNREACHABLE:
            return False
        return True

    until(answered)
    return found[-1]


@pytest.mark.slow
@pytest.mark.parametrize("change", [fall_over, die])
def test_everything_goes_on_with_the_new_primary(
    whole: sentinels.Watched, namespace: str, change: Callable[[sentinels.Watched], object]
) -> None:
    """Clients, consumer, results, records and leases go on with the new primary, as connected."""
    keys, url = Keys(namespace), whole.url
    redis = connect_impatiently(url, 2.0)
    app = create_app(Settings(broker_url=url, device="cpu"))
    box, record = Box(url, namespace), owners.worker(redis, keys, "host:1")
    active, owner = ActiveTasks(), "host:1"
    lease = Lease(redis, keys, active, HeldMessages(redis), list, 15.0, owner=owner)
    with GenerationClient(url, namespace) as client:
        wanted = {"prompt": "x", "model": namespace}
        task = client.submit(wanted, "before")
        box.drain()
        claim = owners.take(record, "before")
        app.backend.store_result("before", {"step": 1}, "PROGRESS")
        lease.renew()
        change(whole)
        until_answered(lambda: owners.append(record, claim, "progress", owners.PROGRESS))
        until_answered(lease.renew)
        assert owners.kinds(connect(url), keys, "before") == ["queued", "started", "progress"]
        assert client.handle("before").status() == task.status() == "running"
        client.submit(wanted, "after")
        assert until_answered(lambda: app.backend.get_state("before")) == "PROGRESS"
        after = Box(url, namespace)  # as Celery's consumer does, once its connection is lost
        (message,) = until_answered(after.drain)
        assert message.headers["id"] == "after"
        with whole.connect() as primary:
            assert primary.llen(queue_name(namespace)) == 0
        message.ack()
        after.close()
        box.close()
        for each in box._got:  # over a connection of its own
            each.ack()
        with whole.connect() as primary:
            assert not primary.exists(UNACKED, UNACKED_INDEX)


def test_asyncio_goes_on_with_the_new_primary(whole: sentinels.Watched, namespace: str) -> None:
    """A client that follows a task reads on, and submits to the new primary."""

    async def follow() -> list[str]:
        async with AsyncGenerationClient(whole.url, namespace) as client:
            wanted = {"prompt": "x", "model": namespace}
            task = await client.submit(wanted, "followed")
            await asyncio.to_thread(whole.fail_over)
            while True:  # the new primary has no replica yet
                try:
                    await client.submit(wanted, "other")
                    break
                except ServiceUnavailable:
                    await asyncio.sleep(0.05)
            assert await client.queue_depths([namespace]) == {namespace: 2}
            await client.handle("followed").cancel()
            return [event.type async for event in task.events(timeout=30)]

    assert asyncio.run(follow()) == ["queued", "cancelled"]


def test_a_server_that_is_no_primary_is_left(whole: sentinels.Watched) -> None:
    """A script that a replica refuses breaks the connection, so that the next one asks again.

    Newer servers refuse it in words that redis-py knows, those of 6.2 in others.
    """
    address = RedisAddress.parse(whole.url)
    options = connection.connection_options(address)
    script = "return redis.call('INCR', KEYS[1])"
    redis = connect(whole.url)
    before: Any = redis.eval(script, 1, "counted")
    replica = next(node for node in whole.nodes if node is not whole.primary())
    pool: Any = redis.connection_pool
    held = pool.get_connection()
    held.disconnect()
    held.connect_to(("127.0.0.1", replica.port))
    pool.release(held)
    pool.proxy.master_address = held.host, held.port  # as if the sentinels had not noticed yet
    held.send_command("EVAL", script, 1, "counted")
    with pytest.raises(RedisConnectionError, match=r"no primary any more|is now a slave"):
        held.read_response()
    assert redis.eval(script, 1, "counted") == before + 1

    async def refused() -> None:
        client = aio_pools.client_of(address, options)
        async with client:
            connected: Any = await client.connection_pool.get_connection()
            await connected.disconnect()
            await connected.connect_to(("127.0.0.1", replica.port))
            await connected.send_command("EVAL", script, 1, "counted")
            with pytest.raises(RedisConnectionError, match=r"no primary any more|is now a slave"):
                await connected.read_response()
            assert await client.eval(script, 1, "counted") == before + 2

    asyncio.run(refused())


@pytest.mark.parametrize(
    ("text", "is_left"),
    [
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("Error running script (call to f_1): @user_script:40: -NOREPLICAS Not enough", True),
        ("READONLY You can't write against a read only replica.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_refusals_for_which_a_server_is_left(text: str, *, is_left: bool) -> None:
    """A refusal by a replica, or by a primary without its replicas, means leaving that server."""
    assert pools.is_demoted(ResponseError(text)) is is_left


def test_users_and_passwords_of_both(whole: sentinels.Watched, namespace: str) -> None:
    """The logins of Redis and of its sentinels may have characters that URLs encode."""
    user, password = "art@home/1", "p:w#?/@"
    everything: dict[str, Any] = {
        "enabled": True, "passwords": [f"+{password}"], "keys": ["*"], "channels": ["*"],
        "commands": ["+@all"],
    }  # fmt: skip
    for server in (*whole.nodes, *whole.sentinels):
        with server.connect() as redis:
            redis.acl_setuser(user, **everything)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    hosts = whole.url.partition("://")[2].partition("/")[0]
    own = urlencode({"sentinel_username": user, "sentinel_password": password})
    url = f"sentinel://{login}@{hosts}/0?master_name={sentinels.MASTER_NAME}&{own}"
    app = create_app(Settings(broker_url=url, device="cpu"))
    with connect(url) as redis, app.connection_for_read() as broker:
        asked: Any = redis.connection_pool
        redis.ping()
        sentinel = asked.sentinel_manager.sentinels[0]
        clients = redis, broker.default_channel.client, app.backend.client, sentinel
        assert [each.acl_whoami() for each in clients] == [user] * 4


def test_sentinels_that_do_not_answer_are_skipped(whole: sentinels.Watched) -> None:
    """A sentinel that does not answer is skipped."""
    with connect(whole.url.replace("sentinel://", "sentinel://127.0.0.1:9,")) as redis:
        assert redis.ping()


def test_an_unknown_primary_and_a_wrong_password_are_named(whole: sentinels.Watched) -> None:
    """The errors of a wrong name and of a wrong password say which it is."""
    for wrong, why in (
        (whole.url.replace("=pictures", "=nobody"), "primary nobody .* knows no primary"),
        (whole.url.replace("asked", "wrong"), "(?i)password|NOAUTH|WRONGPASS|invalid"),
    ):
        with GenerationClient(wrong) as client, pytest.raises(ServiceUnavailable, match=why):
            client.handle("x").status()
