"""A page for people beside the API: another application, which is made while the API answers already.

It answers the paths that its own scripts ask for, and no others: what it is made of can do more than a page needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response

from engines.serve.limits import TOO_LARGE, App, Receive, Scope, Send, TooLargeError
from engines.serve.wire import error_document

log = logging.getLogger(__name__)
API_PATHS = ("/v1", "/healthz", "/metrics")
_EXACT = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt")
_FOLDERS = (
    "/assets/",
    "/static/",
    "/svelte/",
    "/gradio_api/queue/",
    "/gradio_api/heartbeat/",
    "/gradio_api/run/predict",
)
_UPLOADS = ("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/cancel", "/gradio_api/reset")
_FILE, _LISTENING = "/gradio_api/file=", "/gradio_api/heartbeat/"
"""The paths of a file that a browser is shown, and of a request that lasts as long as a browser is there."""
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""A browser that obeys it asks no other host for anything."""
_FILE_POLICY = "sandbox; default-src 'none'"
"""A file that a browser opens by itself is shown, and runs nothing."""


class WithPage:
    """An API and a page: who asks for the page before it is made waits for it."""

    def __init__(
        self, make: Callable[[], Starlette], folder: str, ready: Callable[[BaseException | None], None]
    ) -> None:
        """Args:
        make: makes the page, in a thread of its own.
        folder: where the files of the page lie; it gives no others.
        ready: called once, when the page is there, or with why it cannot be.

        """
        self._make, self._files, self._ready = make, f"{_FILE}{folder.rstrip('/')}/", ready
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
                self._ready(None)
                await ended.wait()
        except BaseException as error:
            if made.done():
                log.exception("the page ended badly")
                return
            log.debug("the page cannot be shown", exc_info=error)
            made.set_exception(RuntimeError(str(error)))
            made.exception()  # whoever asks for the page hears of it; if nobody does, that is no mistake
            self._ready(error)
            if not isinstance(error, Exception):
                raise

    def beside(self, api: App) -> App:
        """The application that answers requests for either."""

        async def either(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or is_api(scope["path"]):
                await api(scope, receive, send)
            elif not self._is_ours(scope["path"]):
                await JSONResponse(_said("Not Found", "invalid_request_error"), 404)(scope, receive, send)
            else:
                await self._answer(scope, receive, send)

        return either

    def _is_ours(self, path: str) -> bool:
        if path.startswith(_FILE):
            return path.startswith(self._files) and ".." not in path
        return path in _EXACT or path in _UPLOADS or path.startswith(_FOLDERS)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._made is not None, "requests come after the start"
        try:
            page = await asyncio.shield(self._made)
        except RuntimeError as error:
            await JSONResponse(_said(f"the page cannot be shown: {error}", "server_error"), 503)(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        answering = page(scope, exchange.receive, exchange.send)
        if scope["path"].startswith(_LISTENING):
            await self._until_stop(answering)
            return
        try:
            await answering
        except Exception:
            if not exchange.refused:
                raise

    async def _until_stop(self, answering: Coroutine[Any, Any, None]) -> None:
        """Answer a request that would never end."""
        answer, stop = asyncio.create_task(answering), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({answer, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
            stop.cancel()
            await asyncio.wait({answer, stop})
        if not answer.cancelled():
            answer.result()


class _Exchange:
    """One request of the page: its answer with what all have, or a refusal where the request is too large."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.refused = self._started = False

    async def receive(self) -> Any:
        """See ASGI; a body that is too large ends here."""
        try:
            return await self._receive()
        except TooLargeError as error:
            if not self._started:
                self.refused = True
                answer: Response = JSONResponse(_said(str(error), **TOO_LARGE), 413, {"Connection": "close"})
                await answer(self._scope, self._receive, self._send)
            return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self._started = True
            policy = _FILE_POLICY if self._scope["path"].startswith(_FILE) else _POLICY
            own = [(b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff")]
            message["headers"] = [*message.get("headers", []), *own]
        await self._send(message)


def is_api(path: str) -> bool:
    """Whether a path is one of the API, and not of a page."""
    return any(path == own or path.startswith(f"{own}/") for own in API_PATHS)


def _said(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return error_document(message, kind=kind, code=code)
