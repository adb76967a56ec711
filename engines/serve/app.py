"""The server as an application: its paths, and how errors reach clients.

POST /v1/images/generations, /v1/images/edits     images, or a stream of events
GET  /v1/models, /v1/models/{id}, /v1/classes     what there is to draw with, and to draw
GET  /healthz, /metrics                           for machines that watch
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.middleware.cors import CORSMiddleware

from engines.bundle.labels import ClassNames
from engines.draw.request import Request as Drawn
from engines.errors import (
    UsageError,
    VarExportError,
)
from engines.foreign import parse_json
from engines.serve import wire
from engines.serve.errors import add_handlers, refusal
from engines.serve.joiner import QueueFullError
from engines.serve.limits import App, Limits
from engines.serve.metrics import Metrics
from engines.serve.models import Models, NoRoomError, ServedModel
from engines.serve.page import WithPage
from engines.serve.waiting import Job, drawn, while_connected

log = logging.getLogger(__name__)
HEALTH_SECONDS = 10.0
"""For how long the outcome of the last image that was drawn for `/healthz` counts."""
_FORM_FIELDS, _FORM_FILES = 64, 4
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows."""

    seconds: float = 120.0
    """How long a request may take, waiting and drawing."""
    body_bytes: int = 32 * 2**20
    key: str | None = None
    """What clients must send as a bearer token; None: nothing."""
    origins: Sequence[str] = ()
    """Pages of these origins may call it from a browser."""
    hosts: Sequence[str] = ()
    """Names that requests may call it by; none are all."""


def create_app(models: Models, metrics: Metrics, settings: ServerSettings, page: WithPage | None = None) -> App:
    """The whole server. Starting it loads nothing; stopping it finishes what waits.

    `page` answers whatever the API does not.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(models.sweep())
        async with contextlib.nullcontext() if page is None else page.running():
            yield
        sweeper.cancel()
        await models.close()

    app = FastAPI(title="var-export", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _Routes(models, metrics, settings).add_to(app)
    add_handlers(app)
    limited = Limits(
        app if page is None else page.beside(app),
        body_bytes=settings.body_bytes,
        key=settings.key,
        origins=settings.origins,
        hosts=settings.hosts,
        metrics=metrics,
    )
    if not settings.origins:
        return limited
    return CORSMiddleware(  # outside, so that a page may read refusals too
        limited,
        allow_origins=list(settings.origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )


class _Stream(StreamingResponse):
    """Events, and what has to be done when they end, however they do."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


class _Routes:
    """What each path does."""

    def __init__(self, models: Models, metrics: Metrics, settings: ServerSettings) -> None:
        self._models, self._metrics, self._settings = models, metrics, settings
        self._health: tuple[float, Response] | None = None
        self._asking, self._decoding = asyncio.Lock(), asyncio.Lock()

    def add_to(self, app: FastAPI) -> None:
        """Give each of these methods its path in `app`."""
        app.add_api_route("/v1/images/generations", self.generate, methods=["POST"], response_model=None)
        app.add_api_route("/v1/images/edits", self.edit, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.list_models, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name}", self.show_model, methods=["GET"], response_model=None)
        app.add_api_route("/v1/classes", self.list_classes, methods=["GET"], response_model=None)
        app.add_api_route("/healthz", self.health, methods=["GET"], response_model=None)
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)

    async def generate(self, request: Request) -> Response:
        """Draw images of one class."""
        try:
            document = parse_json(await request.body())
        except ValueError as error:
            raise UsageError(f"the body is no JSON: {error}") from error
        body = _parsed(wire.GenerationBody, document)
        model = self._models.find(body.model)
        return await self._drawn(request, model, body, wire.request_of(body, model.bundle), "image_generation")

    async def edit(self, request: Request) -> Response:
        """Redraw a part of a picture."""
        async with request.form(max_files=_FORM_FILES, max_fields=_FORM_FIELDS) as form:
            items = form.multi_items()
            uploads = [(name.removesuffix("[]"), value) for name, value in items if isinstance(value, UploadFile)]
            files = {name: await value.read() for name, value in uploads}
            fields = wire.fields_of((name, value) for name, value in items if isinstance(value, str))
        if len(files) < len(uploads):
            raise UsageError("image is given twice; this server edits one picture")
        if "image" not in files:
            raise UsageError("image is missing: send the picture to edit as a file")
        if unknown := files.keys() - {"image", "mask"}:
            raise UsageError(f"{min(unknown)} is no file that an edit has")
        body = _parsed(wire.EditBody, fields)
        model = self._models.find(body.model)
        drawn = wire.request_of(body, model.bundle)
        async with self._decoding:  # one after another: a large picture takes half a gigabyte
            edit = await asyncio.to_thread(wire.edited, model.bundle, body, files["image"], files.get("mask"))
        return await self._drawn(request, model, body, drawn, "image_edit", edit)

    async def _drawn(
        self, request: Request, model: ServedModel, body: Any, drawn: Drawn, event: str, edit: Any = None
    ) -> Response:
        scales, deadline = wire.scales_of(body, model.bundle), time.monotonic() + self._settings.seconds
        model.asked += 1
        kept = False
        try:
            joiner = await while_connected(request, self._models.joiner(model), deadline)
            orders = wire.orders_of(drawn, joiner.pipeline.max_batch, edit)
            job = Job(orders, scales, deadline)
            joiner.submit(job.tickets)

            def ended() -> None:
                job.cancel()
                model.asked -= 1

            if body.stream:
                kept = True
                return _Stream(self._events(model, job, body, drawn, event), ended)
            try:
                data = await while_connected(request, self._data(model, job, body, drawn), deadline)
            finally:
                job.cancel()
        finally:
            model.asked -= not kept
        document = {"created": wire.now(), "data": data, **wire.shared_of(body, model.bundle)}
        return JSONResponse(document | {"usage": wire.usage_of(len(drawn), model.bundle)})

    async def _data(self, model: ServedModel, job: Job, body: Any, drawn: Drawn) -> list[dict[str, Any]]:
        texts = drawn.texts(model.bundle)
        data: list[dict[str, Any]] = [{} for _ in texts]
        async for first, preview in job.previews():
            if preview.final:
                for place, image in enumerate(preview.images, first):
                    pixels = await asyncio.to_thread(wire.encoded, image, body, texts[place])
                    data[place] = {"b64_json": pixels, **_told_of(drawn, texts, place)}
        return data

    async def _events(self, model: ServedModel, job: Job, body: Any, drawn: Drawn, event: str) -> AsyncIterator[str]:
        texts, shared = drawn.texts(model.bundle), wire.shared_of(body, model.bundle)
        shown = [0] * len(texts)
        try:
            async for first, preview in job.previews():
                for place, image in enumerate(preview.images, first):
                    pixels = await asyncio.to_thread(wire.encoded, image, body, texts[place])
                    document = {"b64_json": pixels, "created_at": wire.now(), **shared}
                    document |= {"image_index": place, **_told_of(drawn, texts, place), "scale": preview.scale}
                    if preview.final:
                        yield _event(f"{event}.completed", document | {"usage": wire.usage_of(1, model.bundle)})
                    else:
                        yield _event(f"{event}.partial_image", document | {"partial_image_index": shown[place]})
                        shown[place] += 1
        except Exception as error:  # the status is sent already: the error is the last event
            if not isinstance(error, VarExportError):
                log.exception("a stream failed")
            yield _event("error", refusal(error)[1])

    async def list_models(self) -> Response:
        """All bundles."""
        return JSONResponse({"object": "list", "data": [self._document(model) for model in self._models]})

    async def show_model(self, name: str) -> Response:
        """One bundle."""
        return JSONResponse(self._document(self._models.find(name)))

    def _document(self, model: ServedModel) -> dict[str, Any]:
        return wire.model_document(model.name, model.bundle, loaded=model.joiner is not None)

    async def list_classes(self, model: str | None = None, query: str = "") -> Response:
        """The classes of a model whose labels hold `query`, in any case."""
        bundle = self._models.find(model).bundle
        names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
        found = [{"index": index, "label": names.label(index)} for index in names.holding(query)]
        return JSONResponse({"object": "list", "data": found})

    async def health(self) -> Response:
        """Whether this server draws: it does, or did a moment ago, or else one image is drawn."""
        joiners = [model.joiner for model in self._models if model.joiner is not None]
        now = time.monotonic()
        if any(not joiner.is_idle or now - joiner.drew_at < HEALTH_SECONDS for joiner in joiners):
            return JSONResponse({"status": "ok"})
        if not joiners and self._health is not None and self._health[1].status_code == HTTPStatus.OK:
            return self._health[1]  # nobody has used a model for long: it is not loaded to be asked
        async with self._asking:
            if self._health is None or time.monotonic() - self._health[0] > HEALTH_SECONDS:
                self._health = time.monotonic(), await self._drawing()
        return self._health[1]

    async def _drawing(self) -> Response:
        """Draw with a model that is loaded, or with the first."""
        model = next((each for each in self._models if each.joiner is not None), self._models.find(None))
        request = wire.request_of(wire.GenerationBody(seed=0, cfg=0.0), model.bundle)
        try:
            deadline = time.monotonic() + self._settings.seconds
            async for _ in drawn(self._models, model, request, deadline, is_use=False):
                pass
        except (QueueFullError, NoRoomError):
            pass  # it is busy, and drawing
        except VarExportError as error:
            return JSONResponse({"status": "failing", "message": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.page(self._models), media_type="text/plain; version=0.0.4")


def _told_of(drawn: Drawn, texts: Sequence[dict[str, str]], place: int) -> dict[str, Any]:
    return {"seed": int(drawn.seeds[place]), "class": int(drawn.classes[place]), "label": texts[place]["label"]}


def _event(name: str, document: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **document})}\n\n"


def _parsed(kind: type[Body], document: Any) -> Body:
    """Raises `UsageError`, naming the field."""
    if not isinstance(document, dict):
        raise UsageError("the body must be an object of JSON")
    try:
        return kind.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "body"
        what = "is no field of this request" if first["type"] == "extra_forbidden" else f"is wrong: {first['msg']}"
        raise UsageError(f"{name:.60} {what}") from error
