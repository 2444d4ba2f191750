"""Redis servers with restricted users."""

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
    """Redis 6.2 from the wheel, and the system's Redis if there is one (Debian's is 7.0)."""
    if request.param == "wheel":
        return wheel_redis()
    if not SYSTEM_REDIS.exists():
        pytest.skip(f"no {SYSTEM_REDIS} here")
    return str(SYSTEM_REDIS)


@pytest.fixture(scope="session")
def server(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A Redis with the ACL file."""
    with guarded(tmp_path_factory.mktemp("guarded"), executable) as started:
        yield started


@pytest.fixture
def quiet(executable: str, tmp_path: Path) -> Iterator[Guarded]:
    """A Redis with the ACL file of its own, where no worker's reconciler interferes."""
    with guarded(tmp_path, executable) as started:
        yield started


@pytest.fixture(scope="session")
def _frozen() -> None:
    """Exclude everything imported so far from collections, which are then 100 times faster."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _collected(_frozen: None) -> Iterator[None]:
    """Collect kombu's unclosed sockets after each test.

    Otherwise their warnings, formatted with `ast`, may come while code is being compiled, which
    Python 3.11 can't do twice at a time.
    """
    yield
    gc.collect()


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client in the test's namespace."""
    with GenerationClient(redis_url, namespace) as made:
        yield made


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis-py and kombu do not pause between their attempts to connect."""
    monkeypatch.setattr("redis.retry.sleep", lambda _s: None)
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _s: None)
