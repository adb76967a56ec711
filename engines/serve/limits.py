"""What stands before every request: its size, its key, its id, its time."""

from __future__ import annotations

import base64
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from engines.errors import VarExportError
from engines.serve.metrics import Metrics
from engines.serve.wire import error_document

log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = ("/healthz",)
"""What a load balancer asks without a key."""
ANY = "*"
TOO_LARGE = {"kind": "invalid_request_error", "code": "request_too_large"}
DRAINED = 4
"""How many times the largest body is read of one that is refused."""
_MAX_ID, _MAX_DIGITS = 64, 32


class TooLargeError(VarExportError):
    """A body is larger than it may be."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the request is larger than {most / 2**20:g} MiB")


class Limits:
    """An ASGI application before another one."""

    def __init__(
        self,
        app: App,
        *,
        body_bytes: int,
        key: str | None,
        origins: Sequence[str],
        hosts: Sequence[str],
        metrics: Metrics,
    ) -> None:
        """Args:
        app: what answers.
        body_bytes: the largest body.
        key: what the header `Authorization: Bearer` must have, if anything.
        origins: of pages that may send requests from a browser, beside the server's own.
        hosts: names that a request may call the server by; none are all. A page that points a name of its own at
            this machine is kept out by them.
        metrics: where the time of each request is told.

        """
        self._app, self._most, self._key, self._metrics = app, body_bytes, key, metrics
        self._origins, self._hosts = frozenset(origins), frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "websocket":  # nothing here speaks it, and none of these limits would hold
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = (
            given if given.isascii() and given.isprintable() and 0 < len(given) <= _MAX_ID else uuid.uuid4().hex
        )
        began, status = time.monotonic(), 499
        taken = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:
                await self._drain(receive, message)
                raise TooLargeError(self._most)
            return message

        async def told(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await self._drain(receive)
                await refusal(scope, receive, told)
                return
            await self._app(scope, limited, told)
        finally:
            seconds = time.monotonic() - began
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.seconds.labels(path=path, status=str(status)).observe(seconds)
            log.info("%s %s %s %d %.3f s", request_id, scope["method"], path, status, seconds)

    async def _drain(self, receive: Receive, message: MutableMapping[str, Any] | None = None) -> None:
        """Read on, and keep nothing: a client that still sends would not read the answer. Not for ever, though."""
        left = DRAINED * self._most
        while left > 0 and (message is None or message.get("more_body", False)):
            message = await receive()
            left -= len(message.get("body", b""))

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if self._hosts and _parts(f"//{host}")[1] not in self._hosts:
            return _forbidden(f"this server is not called {host:.80}: start it with --allow-host where it is", "host")
        if headers.get(b"sec-fetch-site") == b"cross-site" and not origin and scope["path"] != "/":
            return _forbidden("a page of elsewhere may link to this server's page, and to nothing else here", "origin")
        if origin and not self._origins & {origin, ANY} and _parts(origin)[0] != host:
            message = f"pages of {origin:.80} may not call this server: start it with --allow-origin where they may"
            return _forbidden(message, "origin")
        asks_first = scope["method"] == "OPTIONS"  # what a browser sends before a request, without the key
        if self._key is not None and scope["path"] not in OPEN_PATHS and not asks_first:
            given = _key_of(headers, browsers=not scope["path"].startswith("/v1/"))
            if not hmac.compare_digest(given, self._key.encode()):
                return _unknown(headers)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < _MAX_DIGITS and int(length) > self._most:
            document = error_document(str(TooLargeError(self._most)), **TOO_LARGE)
            return JSONResponse(document, 413, {"Connection": "close"})
        return None


def _unknown(headers: Mapping[bytes, bytes]) -> JSONResponse:
    """The answer to who sends no key, or another; a browser asks its user for it."""
    message = "the API key is missing or wrong: send the header Authorization: Bearer KEY"
    document = error_document(message, kind="authentication_error", code="invalid_api_key")
    reads_pages = b"text/html" in headers.get(b"accept", b"")
    scheme = 'Basic realm="the API key is the password"' if reads_pages else "Bearer"
    return JSONResponse(document, 401, {"WWW-Authenticate": scheme})


def _key_of(headers: Mapping[bytes, bytes], *, browsers: bool) -> bytes:
    """The key that a request sends: as a bearer token, or as the password that a browser asked for.

    `browsers`: whether the second counts. A browser sends it unasked, whichever page the request is from.
    """
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    if scheme.lower() == b"basic" and browsers:
        try:
            return base64.b64decode(token, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _forbidden(message: str, what: str) -> JSONResponse:
    return JSONResponse(error_document(message, kind="invalid_request_error", code=f"{what}_not_allowed"), 403)


def _parts(address: str) -> tuple[str, str]:
    """Host with port, and host, of an address; empty where it is none."""
    try:
        found = urlsplit(address)
        return found.netloc, found.hostname or ""
    except ValueError:
        return "", ""
