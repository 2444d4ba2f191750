"""The ACL file with Sentinel: replicas and sentinels have users of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import AsyncGenerationClient, GenerationClient, ServiceUnavailable, TaskStatus
from tests.hostile.guarded import GROUP_USERS, acl_file, new_passwords, until
from tests.sentinels import Users, Watched

if TYPE_CHECKING:
    from pathlib import Path


def url_of(watched: Watched, users: Users, name: str) -> str:
    """The group's URL for one user."""
    return watched.url.replace("://", f"://{name}:{users.passwords[name]}@")


def denials(watched: Watched) -> list[dict[str, Any]]:
    """What any Redis refused a replica or a sentinel."""
    found: list[dict[str, Any]] = []
    for node in watched.nodes:
        if node.is_up:
            with node.connect() as redis:
                found += [each for each in redis.acl_log() if each["username"] in GROUP_USERS]
    return found


def is_submitted(client: GenerationClient, task_id: str) -> bool:
    """Whether a task could be submitted."""
    try:
        client.submit({"prompt": "x", "model": "nobodys"}, task_id)
    except ServiceUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    "returns", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["promoted", "returned"]
)
def test_a_group_fails_over(executable: str, tmp_path: Path, *, returns: bool) -> None:
    """A group with the ACL file promotes a replica, and its former primary can return as one."""
    passwords = new_passwords()
    users = Users(acl_file(executable, passwords), passwords)
    with Watched(tmp_path, executable, users=users) as watched:
        with GenerationClient(url_of(watched, users, "producer")) as client:
            client.submit({"prompt": "x", "model": "nobodys"}, "before")
            with watched.connect() as primary:
                assert primary.wait(1, 10_000)
            dead = watched.kill_primary()
            if returns:
                dead.start()
                watched.wait_for_replicas()
            until(lambda: is_submitted(client, "after"))
            assert client.handle("before").status() is TaskStatus.QUEUED

        async def status() -> TaskStatus:
            async with AsyncGenerationClient(url_of(watched, users, "watcher")) as watcher:
                return await watcher.handle("after").status()

        assert asyncio.run(status()) is TaskStatus.QUEUED
        assert denials(watched) == []
