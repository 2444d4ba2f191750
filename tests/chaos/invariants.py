"""What must hold after any run: each law a function from the evidence to what broke it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos import store_laws, stream_laws

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.evidence import Evidence
    from tests.chaos.stream_laws import Broken

LAWS: tuple[Callable[[Evidence], Broken], ...] = (
    stream_laws.none_is_lost,
    stream_laws.one_end,
    stream_laws.nothing_after_the_end,
    stream_laws.numbers_without_gaps,
    stream_laws.attempts_never_fall,
    stream_laws.one_owner,
    stream_laws.one_fence_one_claim,
    stream_laws.no_living_owner_is_robbed,
    stream_laws.client_saw_the_stream,
    stream_laws.clients_never_break,
    stream_laws.ends_have_their_reason,
    store_laws.pictures_are_those_of_an_undisturbed_run,
    store_laws.manifests_agree,
    store_laws.record_agrees,
    store_laws.celery_agrees,
    store_laws.ends_are_pushed,
    store_laws.all_is_as_published,
    store_laws.nothing_else_in_s3,
    store_laws.nothing_else_in_redis,
    store_laws.nothing_is_left,
)
#: Laws whose breach means that a task ended twice or had two owners at once.
DOUBLING = (stream_laws.one_end, stream_laws.one_owner, stream_laws.one_fence_one_claim)


@dataclass(frozen=True)
class Violation:
    """A law that was broken."""

    law: str
    #: A task's id or a key.
    what: str
    how: str


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong."""
    return [Violation(law.__name__, what, how) for law in LAWS for what, how in law(evidence)]
