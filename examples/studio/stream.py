"""The events of several tasks as one stream, each as soon as it comes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi.sse import format_sse_event

from api_contracts import GenerationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from api_contracts import AsyncTaskHandle, Event


async def lines(tasks: Sequence[AsyncTaskHandle], seqs: Sequence[int]) -> AsyncIterator[bytes]:
    """Server-sent events of the tasks, each task's from after its number in `seqs` on.

    An event's id has the number of every task's last event, so that any of them resumes the stream.
    """
    last = list(seqs)
    streams = [task.events(after=seq) for task, seq in zip(tasks, last, strict=True)]
    with suppress(GenerationError):  # the browser reconnects and gets an HTTP status then
        async for number, event in _merged(streams):
            last[number] = event.seq
            yield format_sse_event(data_str=event.model_dump_json(), id=",".join(map(str, last)))


async def _merged(streams: Sequence[AsyncGenerator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Each event with the number of its stream."""
    reading = {asyncio.ensure_future(_next(each)): number for number, each in enumerate(streams)}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                number = reading.pop(read)
                if (event := read.result()) is not None:
                    yield number, event
                    reading[asyncio.ensure_future(_next(streams[number]))] = number
    finally:
        for read in reading:
            read.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _next(stream: AsyncGenerator[Event]) -> Event | None:
    return await anext(stream, None)
