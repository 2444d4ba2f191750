"""The strings that clients and workers share."""

from __future__ import annotations

import pytest
from kombu import Connection

from api_contracts import names

GOOD_IDS = ("a", "0", "-a", "_1", ".a", "a.", "..a", "A-z_0.9", "a" * 128, "--0--")
BAD_IDS = (
    "", ".", "..", "...", "-", "_", "._-", "a" * 129, "a\n", "\na", "a ", " a", "a/b", "../a",
    "a\\b", "a\x00", "{a}", "a:b", "a*", "\u00e4", "\u0661", "\ud800", "%2e", None, 5, b"a", ["a"],
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD_IDS)
def test_a_task_id(text: str) -> None:
    """A task id is 1 to 128 letters, digits, dots, underscores and hyphens."""
    assert names.is_task_id(text)


@pytest.mark.parametrize("text", BAD_IDS)
def test_no_task_id(text: object) -> None:
    """Text that could leave a folder, end a line or name another key is not a task id."""
    assert not names.is_task_id(text)


@pytest.mark.parametrize("model", ["default", "sd-1.5"])
def test_priority_lists_are_those_of_kombu(redis_url: str, model: str) -> None:
    """The lists of a queue are exactly those that kombu reads and writes."""
    options = names.TRANSPORT_OPTIONS
    with Connection(redis_url, transport_options=options) as connection:
        channel = connection.default_channel
        queue = names.queue_name(model)
        used = [channel._q_for_pri(queue, priority) for priority in names.PRIORITIES]
        assert names.queue_lists(model) == used
        assert list(channel.priority_steps) == list(names.PRIORITIES)
        assert type(channel).sep == names.PRIORITY_SEPARATOR  # what a stranger's Celery has


def test_keys_of_a_task_share_a_slot() -> None:
    """Every key of a task has its id in braces, below the namespace."""
    keys = names.Keys("ns")
    assert (keys.task("t"), keys.events("t"), keys.checkpoint("t")) == (
        "ns:{t}:task",
        "ns:{t}:events",
        "ns:{t}:checkpoint",
    )
    assert (keys.open, keys.control) == ("ns:open", "ns:control")
    assert names.Keys().open == "sag:open"


def test_published_names() -> None:
    """The published names never change."""
    assert names.TASK_NAME == "sag.generate"
    assert names.queue_name("default") == "generate.default"


def test_an_application_keeps_its_options_to_itself() -> None:
    """A worker's additions to the broker options do not reach the shared ones."""
    from worker.app import create_app
    from worker.config.settings import Settings

    before = dict(names.TRANSPORT_OPTIONS)
    app = create_app(Settings(device="cpu"))
    assert app.conf.broker_transport_options["owner"]
    assert before == names.TRANSPORT_OPTIONS
