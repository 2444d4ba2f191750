"""Redis URLs that are refused, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api_contracts import AsyncGenerationClient, GenerationClient
from worker.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: URLs that are refused, and a part of the reason.
REFUSED = {
    "redis://h/x": "database number",
    "redis://h/1/2": "database number",
    "redis://h/0?db=": "database number",
    "redis://h/0?protocol=3": "unknown option 'protocol'",
    "redis://h/0?virtual_host=3": "unknown option 'virtual_host'",
    "redis://h/0?db=1&db=2": "twice 'db'",
    "redis://h/0?socket_timeout=soon": "seconds above 0",
    "redis://h/0?socket_timeout=-1": "seconds above 0",
    "redis://h/0?socket_timeout=0": "seconds above 0",
    "redis://h/0?health_check_interval=-1": "seconds above 0",
    "redis://h/0?socket_timeout=inf": "seconds above 0",
    "redis://h/0?ssl_cert_reqs=required": "needs rediss://",
    "redis://h/0?ssl_password=x": "needs rediss://",
    "rediss://h/0?ssl_cert_reqs=CERT_SOME": "one of ",
    "rediss://h/0?ssl_check_hostname=maybe": "one of ",
    "redis://h:1,g:2/0": "one server",
    "redis://h:1/0;redis://g:2/0": "one server",
    "redis://h;g/0": "one server",
    "redis://:a;b@h,g/0?client_name=x": "one server",
    "redis://h:0/0": "Redis URL",
    "redis://h:99999/0": "Redis URL",
    "redis://:p/w@h:1/0": "Redis URL",
    "redis://:p?w@h:1/0": "Redis URL",
    "redis://:p#w@h:1/0": "Redis URL",
    "unix://nowhere/none.sock": "whole path",
    "unix://": "whole path",
    "unix:///s?db=x": "database number",
    "unix:///s?ssl_ca_certs=x": "needs rediss://",
    "unix:///s?virtual_host=1": "unknown option 'virtual_host'",
    "redis+socket:///s?virtual_host=1&db=1": "twice 'db'",
    "socket:///s": "unix:///PATH",
    "valkey://h/0?ssl_ca_certs=x": "needs rediss://",
    "redis://h/0?master_name=m": "needs sentinel://",
    "sentinel://h:1/0": "name of the primary",
    "sentinel://h:1/0?master_name=": "name of the primary",
    "sentinel://h:1/0?master_name=a%20b": "name of the primary",
    "sentinel://h:1,,g:1/0?master_name=m": "one list",
    "sentinel://?master_name=m": "one list",
    "sentinel://h:1;g:2/0?master_name=m": "one list",
    "sentinel://:p@h:1;sentinel://:p@g:2/0?master_name=m": "one list",
    "sentinel://h:1;sentinel://g:2": "one list",
    "sentinel://h:0/0?master_name=m": "Redis URL",
    "sentinel://u:pw@h:1,u:pw@g:2/0?master_name=m": "one user and password",
    "sentinel://u:p@w@h:1/0?master_name=m": "@ as %40",
    "sentinel://h/x?master_name=m": "database number",
    "sentinel://h/0?master_name=m&ssl_ca_certs=x": "or sentinels://",
    "redis+sentinel://h:1,g:2/m/0": "sentinel://USER",
    "redis-sentinel://h:1/0#m": "sentinel://USER",
    "redis+cluster://h/0": "Redis Cluster, which is not supported",
    "rediss+cluster://h/0": "Redis Cluster, which is not supported",
    "redis-cluster://h,g": "Redis Cluster, which is not supported",
    "valkey+cluster://h": "Redis Cluster, which is not supported",
    "": "must start with redis://",
    "redis:0": "must start with redis://",
    "redis:/3": "must start with redis://",
    "rediss:h:1/0": "must start with redis://",
}


@pytest.mark.parametrize(("url", "reason"), REFUSED.items())
@pytest.mark.parametrize(
    "read",
    [
        GenerationClient,
        AsyncGenerationClient,
        lambda url: GenerationClient("redis://h/0", events_url=url or "x"),
        lambda url: Settings(broker_url=url),
    ],
    ids=["client", "asyncio", "events", "settings"],
)
def test_another_url_is_refused_at_once(
    read: Callable[[str], object], url: str, reason: str
) -> None:
    """Both clients and the settings refuse any other URL at once, with the reason."""
    with pytest.raises(ValueError, match=reason):
        read(url)
