"""How a request waits, in the server's loop, for images that a thread draws: until they come, or nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request

from engines.backends.base import Array
from engines.draw.request import Request as Drawn
from engines.draw.results import Preview
from engines.errors import CancelledError
from engines.joining.orders import Order
from engines.serve import wire
from engines.serve.joiner import Ticket, TimedOutError, Told
from engines.serve.models import Models, ServedModel

ASK_SECONDS = 0.2
"""How often a request that waits asks whether its client has gone."""
T = TypeVar("T")


class Job:
    """What one request waits for: its tickets, and what they are told, in the loop of the server."""

    def __init__(
        self, orders: Sequence[Order], scales: tuple[int, ...], deadline: float, *, is_use: bool = True
    ) -> None:
        loop, self._told = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Told]]()
        self._deadline = deadline
        self.tickets = []
        first = 0
        for order in orders:

            def tell(told: Told, first: int = first) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                    loop.call_soon_threadsafe(self._told.put_nowait, (first, told))

            self.tickets.append(Ticket(order, scales, tell, deadline, is_use))
            first += len(order)
        self._left = len(self.tickets)

    async def previews(self) -> AsyncIterator[tuple[int, Preview]]:
        """Images as they come, with the place of the first of them in the request. Raises what a ticket is told."""
        while self._left:
            first, told = await _within(self._told.get(), self._deadline)
            if not isinstance(told, Preview):
                raise told
            self._left -= told.final
            yield first, told

    def cancel(self) -> None:
        """Nobody waits any more."""
        for ticket in self.tickets:
            ticket.cancel()


async def drawn(
    models: Models,
    model: ServedModel,
    request: Drawn,
    deadline: float,
    scales: tuple[int, ...] = (),
    edit: tuple[Array, Array] | None = None,
    *,
    is_use: bool = True,
) -> AsyncGenerator[tuple[int, Preview], None]:
    """Images of a request, after `scales` and after the last one, with the place of the first of them in the request.

    Args:
        models: of which `model` is one; it is loaded where it is not.
        model: what draws.
        request: what is drawn.
        deadline: the value of `time.monotonic()` at which nobody waits any more; closing the generator says so earlier.
        scales: after which images are shown, beside the last.
        edit: the picture uint8 (1, R, R, 3) and the cells bool (1, S, S) of all images, where a picture is edited.
        is_use: whether the model counts as used by it.

    Raises what `Models.joiner` and `Joiner.submit` raise, and what goes wrong while drawing.

    """
    model.asked += 1
    try:
        loading = asyncio.create_task(models.joiner(model))  # it goes on where this request ends, for whoever asks next
        loading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        joiner = await _within(asyncio.shield(loading), deadline)
        job = Job(wire.orders_of(request, joiner.pipeline.max_batch, edit), scales, deadline, is_use=is_use)
        joiner.submit(job.tickets)
        try:
            async for found in job.previews():
                yield found
        finally:
            job.cancel()
    finally:
        model.asked -= 1


async def _within(waited: Awaitable[T], deadline: float) -> T:
    """What is waited for. Raises `TimedOutError` at `deadline`, of `time.monotonic()`."""
    try:
        return await asyncio.wait_for(waited, max(0.001, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise TimedOutError("the request took longer than it may") from None


async def while_connected(request: Request, waited: Coroutine[Any, Any, T], deadline: float) -> T:
    """What is waited for, as long as the client waits too. Raises `CancelledError` where it left, `TimedOutError`.

    A model that is being loaded goes on to be, for whoever asks next.
    """
    task = asyncio.create_task(waited)
    try:
        while not (await asyncio.wait({task}, timeout=ASK_SECONDS))[0]:
            if time.monotonic() > deadline:
                raise TimedOutError("the request took longer than it may")
            if await request.is_disconnected():
                raise CancelledError("the client has gone")
        return task.result()
    finally:
        if not task.done():
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody asks for it
