"""The servers of hostile surroundings."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from tests.hostile.guarded import SYSTEM_REDIS, guarded, wheel_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hostile.guarded import Guarded


@pytest.fixture(scope="session", params=["wheel", "system"])
def executable(request: pytest.FixtureRequest) -> str:
    """Redis 6.2, and what the system has where it has one (Debian's is 7.0)."""
    if request.param == "wheel":
        return wheel_redis()
    if not SYSTEM_REDIS.exists():
        pytest.skip(f"no {SYSTEM_REDIS} here")
    return str(SYSTEM_REDIS)


@pytest.fixture(scope="session")
def server(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A Redis behind the ACL file."""
    with guarded(tmp_path_factory.mktemp("guarded"), executable) as started:
        yield started


@pytest.fixture
def quiet(executable: str, tmp_path: Path) -> Iterator[Guarded]:
    """Such a Redis with no worker, whose reconciler would be at work in it."""
    with guarded(tmp_path, executable) as started:
        yield started


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect the sockets that kombu leaves lying while no code is being compiled.

    Their warnings are formatted with `ast`, and Python 3.11's can't be entered twice.
    """
    yield
    gc.collect()


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client in the test's namespace, over the Redis of the session."""
    with GenerationClient(redis_url, namespace) as made:
        yield made
