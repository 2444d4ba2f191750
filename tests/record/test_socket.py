"""Redis on a unix socket alone: clients and workers do all that they do over TCP."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from pydantic import SecretStr
from redis import Redis

from api_contracts import AsyncGenerationClient, GenerationClient
from tests.hostile.guarded import wheel_redis
from tests.record.box import Box
from tests.redis_process import Server
from worker.app import create_app
from worker.broker.held_messages import UNACKED
from worker.config.push_targets import ReplyTarget
from worker.config.settings import Settings
from worker.push.celery_replies import CeleryReplies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A user other than `default`, whose name and password must be percent-encoded in a URL.
USER, PASSWORD = "art@home/1", "p:w#?/@"


class OnSocket(Server):
    """A Redis without a port."""

    def connect(self) -> Redis:
        """A connection of the user `default`."""
        return Redis(unix_socket_path=str(self.folder / "redis.sock"), socket_timeout=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The path of the socket."""
    folder = tmp_path_factory.mktemp("a b")
    socket = folder / "redis.sock"
    command = [wheel_redis(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    server = OnSocket(folder, command, 0)
    server.start()
    with server.connect() as redis:
        redis.acl_setuser(
            USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"],
            commands=["+@all"],
        )  # fmt: skip
    yield socket
    server.send(signal.SIGKILL)


@pytest.mark.parametrize(
    "form",
    ["unix://{login}{path}?db=3", "redis+socket://{login}{path}?virtual_host=3"],
    ids=["unix", "celery"],
)
def test_a_socket_serves_all(path: Path, namespace: str, form: str) -> None:
    """Both clients, consumer, results and replies work over a socket, as a user with a password."""
    login = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
    url = form.format(login=login, path=quote(str(path)))
    app = create_app(Settings(broker_url=url, device="cpu"))
    box = Box(url, namespace)
    with GenerationClient(url, namespace) as client:
        task = client.submit({"prompt": "x", "model": namespace}, "t")
        (message,) = box.drain()
        assert message.headers["id"] == task.task_id
        box.close()
        message.ack()  # over a connection of its own
        assert not client.redis.exists(UNACKED)
        assert task.status() == "queued"
        assert client.redis.acl_whoami() == USER
    app.backend.store_result(namespace, {"step": 1}, "PROGRESS")
    assert app.backend.get_state(namespace) == "PROGRESS"
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.acl_whoami() == USER

    async def cancelled() -> str:
        async with AsyncGenerationClient(url, namespace) as client:
            return str(await client.handle("t").cancel())

    assert asyncio.run(cancelled()) == "queued"
    target = ReplyTarget(queue=namespace, task="theirs", broker_url=SecretStr(url))
    replies = CeleryReplies([target], "redis://127.0.0.1:9/0")
    replies.send(target.address, "m", b'{"x": 1}')
    replies.close()
    with Redis(unix_socket_path=str(path), db=3) as redis:
        assert redis.llen(namespace) == 1
