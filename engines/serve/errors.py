"""How errors reach clients: as OpenAI's, with a status, and never with what only the log may hold."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engines.errors import (
    BackendError,
    BundleError,
    CancelledError,
    CheckFailedError,
    OutOfMemoryError,
    UsageError,
    VarExportError,
)
from engines.serve import wire
from engines.serve.joiner import QueueFullError, TimedOutError
from engines.serve.limits import TOO_LARGE, TooLargeError
from engines.serve.models import NoRoomError, UnknownModelError

log = logging.getLogger(__name__)


def add_handlers(app: FastAPI) -> None:
    """Have `app` answer with errors as `refusal` words them."""
    app.add_exception_handler(VarExportError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_status)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)


def refusal(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, document and headers for an error."""
    message, headers = str(error), {}
    kind, code, status = "server_error", None, 500
    if isinstance(error, UnknownModelError):
        kind, code, status = "invalid_request_error", "model_not_found", 404
    elif isinstance(error, TooLargeError):
        kind, code, status = *TOO_LARGE.values(), 413
        headers["Connection"] = "close"
    elif isinstance(error, QueueFullError):
        kind, code, status = "rate_limit_error", "rate_limit_exceeded", 429
        headers["Retry-After"] = str(error.seconds)
    elif isinstance(error, TimedOutError):
        kind, code, status = "server_error", "timeout", 503
    elif isinstance(error, CancelledError):
        kind, code, status = "server_error", "cancelled", 503
    elif isinstance(error, NoRoomError | OutOfMemoryError):
        kind, code, status = "server_error", "out_of_memory", 503
        headers["Retry-After"] = "10"
    elif isinstance(error, BackendError | BundleError | CheckFailedError):
        kind, code, status = "server_error", "cannot_draw", 503
    elif isinstance(error, UsageError):
        kind, status = "invalid_request_error", 400
    elif not isinstance(error, VarExportError):
        message = "internal error; the server's log has it"
    names = (*wire.GenerationBody.model_fields, *wire.EditBody.model_fields, "image", "mask")
    param = wire.params_named(message, names) if status == 400 else "model" if status == 404 else None
    return status, wire.error_document(message, kind=kind, code=code, param=param), headers


async def _answer_error(_: Request, error: Exception) -> Response:
    status, document, headers = refusal(error)
    return JSONResponse(document, status, headers)


async def _answer_status(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = wire.error_document(str(error.detail), kind="invalid_request_error")
    return JSONResponse(document, error.status_code, dict(error.headers or {}))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the client has gone in the middle of its request


async def _answer_bug(_: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return JSONResponse(refusal(error)[1], 500)
