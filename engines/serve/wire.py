"""Bodies of requests and responses: OpenAI's Images API, with fields of our own beside.

    JSON or a form --> GenerationBody, EditBody (pydantic: names, types, ranges) --> orders for a queue
    images         --> data of a response, events of a stream

What OpenAI's fields mean here: `prompt` is a class (a label, an index or `none`), `size` the model's own or `auto`, and
`partial_images` may be as many as there are scales before the last. Ours are the sampling options, `seed`,
`preview_scales`, and of edits `boxes` and `fit`.
"""

from __future__ import annotations

import base64
import io
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from engines.bundle.labels import ClassNames
from engines.bundle.manifest import Manifest
from engines.draw.editing import prepare
from engines.draw.request import Request, make_request
from engines.editing.boxes import parse_box
from engines.errors import UsageError
from engines.foreign import open_picture, parse_json
from engines.joining.orders import Order
from engines.pictures.images import picture_of, write_picture
from engines.spec.choices import FITS
from engines.spec.sampling import OPTIONS
from engines.spec.uniforms import MAX_SEED

MAX_IMAGES = 10
"""The most images that one request may ask for, which is OpenAI's own limit."""
MAX_PIXELS = 50_000_000
"""The largest picture that may be uploaded: it is decoded in memory."""
LISTS = ("boxes", "preview_scales")
"""Fields that hold several values."""
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_TYPES: dict[str, Any] = {"float": float, "int": int, "bool": bool}
_KINDS: dict[str, type] = {option.name: _TYPES[option.kind] for option in OPTIONS}


class _Images(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    prompt: str = "none"
    n: int = Field(default=1, ge=1, le=MAX_IMAGES)
    size: str = "auto"
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(default=100, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(default=0, ge=0)
    preview_scales: list[int] | None = None
    """The scales to show, in place of `partial_images`."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Image k has seed + k; drawn by lot where it is not given, and told in the response."""
    # Taken, and without a meaning here: clients send them unasked.
    quality: str | None = None
    style: str | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: str | None = None
    user: str | None = None

    @field_validator("preview_scales", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _from_json(value)

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of `engines.spec.sampling` that were given."""
        return {name: value for name in _KINDS if (value := getattr(self, name)) is not None}


_fields: dict[str, Any] = {name: (kind | None, None) for name, kind in _KINDS.items()}
_Drawn = create_model("_Drawn", __base__=_Images, **_fields)


class GenerationBody(_Drawn):  # type: ignore[valid-type, misc]
    """`POST /v1/images/generations`."""


class EditBody(_Drawn):  # type: ignore[valid-type, misc]
    """`POST /v1/images/edits`, beside its files."""

    boxes: list[str] | None = None
    """Parts to redraw, each `x0,y0,x1,y1` in pixels or in fractions of the picture, as of `var-run edit --box`."""
    fit: Literal["crop", "stretch", "pad"] = FITS[0]  # type: ignore[assignment]
    input_fidelity: str | None = None  # taken, and without a meaning here

    @field_validator("boxes", mode="before")
    @classmethod
    def _boxes(cls, value: Any) -> Any:
        return _from_json(value)


def _from_json(value: Any) -> Any:
    """A list that a form holds as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError("must be a list of JSON") from error


def request_of(body: _Images, bundle: Manifest) -> Request:
    """The images that a body asks for. Raises `UsageError`."""
    size = bundle.config.image_size
    if body.size not in ("auto", f"{size}x{size}"):
        raise UsageError(f"size must be auto or {size}x{size}, the one that this model draws, got {body.size!r:.40}")
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    seeds = [(seed + k) % (MAX_SEED + 1) for k in range(body.n)]
    return make_request(bundle, class_of(body, bundle), seeds=seeds, **body.sampling)


def class_of(body: _Images, bundle: Manifest) -> int:
    """The class that a prompt names; an empty one is none. Raises `UsageError`."""
    names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
    try:
        return names.index(body.prompt.strip() or "none")
    except UsageError as error:
        reason = str(error).partition(": `")[0]  # without the command of a terminal
        raise UsageError(f"prompt is no class of this model: {reason}; GET /v1/classes lists them") from error


def scales_of(body: _Images, bundle: Manifest) -> tuple[int, ...]:
    """The scales after which a stream shows its images; the last one comes in any case. Raises `UsageError`."""
    last = bundle.config.num_scales - 1
    if not body.stream:
        return ()
    if body.preview_scales is not None:
        if not all(0 <= scale <= last for scale in body.preview_scales):
            raise UsageError(f"preview_scales must be scales from 0 to {last}, got {body.preview_scales}")
        return tuple(sorted({scale for scale in body.preview_scales if scale < last}))
    if body.partial_images > last:
        raise UsageError(
            f"partial_images must be {last} at most, the scales before the last, got {body.partial_images}"
        )
    return tuple((2 * k + 1) * last // (2 * body.partial_images) for k in range(body.partial_images))  # evenly


def orders_of(request: Request, most: int, edit: tuple[NDArray[Any], NDArray[Any]] | None = None) -> list[Order]:
    """A request as orders of `most` images at most; `edit`: picture (1, R, R, 3) and cells (1, S, S) of all of them."""
    orders = []
    for start in range(0, len(request), most):
        part = slice(start, min(start + most, len(request)))
        sampling = {name: values[part] for name, values in request.sampling.items()}
        own = Request(request.classes[part], request.seeds[part], sampling)
        both = () if edit is None else tuple(np.repeat(array, len(own), 0) for array in edit)
        orders.append(Order(own, *both))
    return orders


def edited(bundle: Manifest, body: EditBody, image: bytes, mask: bytes | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """The model's square of a picture, uint8 (1, R, R, 3), and the cells to redraw, bool (1, S, S).

    These are where `mask`, or else the picture itself, is transparent, and in the boxes. Raises `UsageError`.
    """
    picture, redrawn = uploaded(image, "image")
    height, width = picture.shape[:2]
    if mask is not None:
        _, redrawn = uploaded(mask, "mask")
        if redrawn is None:
            raise UsageError("the mask has no transparent part: what is to be redrawn has alpha 0")
        if redrawn.shape != (height, width):
            raise UsageError(f"the mask has {redrawn.shape[1]}x{redrawn.shape[0]} pixels, the image {width}x{height}")
    for box in body.boxes or ():
        left, top, right, bottom = parse_box(box, width, height)
        redrawn = np.zeros((height, width), np.bool_) if redrawn is None else redrawn
        redrawn[round(top) : max(round(bottom), round(top) + 1), round(left) : max(round(right), round(left) + 1)] = (
            True
        )
    if redrawn is None or not redrawn.any():
        raise UsageError("nothing is to be redrawn: send a mask, an image with a transparent part, or boxes")
    asked = prepare(bundle.config, [picture], [redrawn], class_of(body, bundle), 0, body.fit)
    return asked.squares(), asked.areas


def uploaded(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """A picture (h, w, 3) uint8, and where it is fully transparent, bool (h, w); None where it has no such part.

    Its size is looked at before its pixels. Raises `UsageError`, which calls it `name`.
    """
    from PIL import ImageOps

    with open_picture(name, stream=io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UsageError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels; send a smaller one")
        image.load()
        picture = picture_of(image)
        clear = None
        if image.has_transparency_data:
            clear = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3] == 0
        return np.array(picture), clear if clear is not None and clear.any() else None


def encoded(image: NDArray[np.uint8], body: _Images, text: Mapping[str, str]) -> str:
    """A picture in the format that was asked for, with its settings inside, as base64."""
    stream = io.BytesIO()
    write_picture(stream, image, text, FORMATS[body.output_format], quality=body.output_compression)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def shared_of(body: _Images, bundle: Manifest) -> dict[str, Any]:
    """What a response and the events of a stream say of all images."""
    size = bundle.config.image_size
    return {"size": f"{size}x{size}", "quality": "auto", "background": "opaque", "output_format": body.output_format}


def usage_of(images: int, bundle: Manifest) -> dict[str, Any]:
    """Tokens in and out, as OpenAI counts them: a class is one, an image those of all its scales."""
    drawn = images * bundle.config.num_tokens
    details = {"text_tokens": images, "image_tokens": 0}
    return {
        "input_tokens": images,
        "input_tokens_details": details,
        "output_tokens": drawn,
        "total_tokens": images + drawn,
    }


def now() -> int:
    """Seconds since 1970, as responses have them."""
    return int(time.time())


def model_document(name: str, bundle: Manifest, *, loaded: bool) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    config = bundle.config
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "var-export",
        "loaded": loaded,
        "precision": bundle.precision,
        "image_size": config.image_size,
        "scales": list(config.patch_nums),
        "classes": config.transformer.num_classes,
        "sampling": bundle.sampling.to_dict(),
    }


def error_document(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def fields_of(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form: lists come as `name[]`, several times or once, or as JSON. Raises `UsageError`."""
    fields: dict[str, Any] = {}
    for name, value in items:
        plain = name.removesuffix("[]")
        if plain in LISTS and (plain != name or plain in fields):
            before = fields.setdefault(plain, [])
            fields[plain] = [*(before if isinstance(before, list) else [before]), value]
        elif plain in fields:
            raise UsageError(f"{plain} is given twice")
        else:
            fields[plain] = value
    return fields


def params_named(message: str, names: Sequence[str]) -> str | None:
    """The field that a message begins with, where it does."""
    first = message.split(" ", 1)[0]
    return first if first in names else None
