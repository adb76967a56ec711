"""A page for people beside the API: another application, which is made while the API answers already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse

from engines.serve.limits import App, Receive, Scope, Send
from engines.serve.wire import error_document

log = logging.getLogger(__name__)
Page = Callable[[], Starlette]
API_PATHS = ("/v1", "/healthz", "/metrics")
_LISTENING = "/heartbeat/"
"""The path of a request by which gradio sees that a browser is there: it lasts as long as that."""
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""A browser that obeys it asks no other host for anything."""


class WithPage:
    """An API and a page: who asks for the page before it is made waits for it."""

    def __init__(self, make: Page) -> None:
        self._make = make
        self._made: asyncio.Future[Starlette] | None = None
        self._stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Makes the page, starts it, and stops it at the end."""
        self._made = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()
        task = asyncio.create_task(self._run(self._made, ended))
        try:
            yield
        finally:
            ended.set()
            await task

    def stop(self) -> None:
        """The server stops: browsers that only listen are left; what is drawn for others goes on."""
        self._stopping.set()

    async def _run(self, made: asyncio.Future[Starlette], ended: asyncio.Event) -> None:
        try:
            page = await asyncio.to_thread(self._make)
            async with page.router.lifespan_context(page):
                made.set_result(page)
                await ended.wait()
        except Exception as error:  # the API goes on without it
            log.exception("the page cannot be shown")
            if not made.done():
                made.set_exception(error)
                made.exception()  # whoever asks for the page hears of it; if nobody does, that is no mistake

    def beside(self, api: App) -> App:
        """The application that answers requests for either."""

        async def either(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or _is_api(scope["path"]):
                await api(scope, receive, send)
                return

            async def told(message: Any) -> None:
                if message["type"] == "http.response.start":
                    own = [(b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                    message["headers"] = [*message.get("headers", []), *own]
                await send(message)

            assert self._made is not None, "requests come after the start"
            try:
                page = await asyncio.shield(self._made)
            except Exception:
                document = error_document("the page cannot be shown; the server's log says why", kind="server_error")
                await JSONResponse(document, 503)(scope, receive, send)
                return
            if _LISTENING in scope["path"]:
                await self._until_stop(page(scope, receive, told))
            else:
                await page(scope, receive, told)

        return either

    async def _until_stop(self, answering: Coroutine[Any, Any, None]) -> None:
        """Answer a request that would never end."""
        tasks = {asyncio.create_task(answering), asyncio.create_task(self._stopping.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _is_api(path: str) -> bool:
    return any(path == own or path.startswith(f"{own}/") for own in API_PATHS)
