"""What requests and responses hold: one table of tensors, and the way from a request's tensors to values and back.

Configurations, models, client and docs read the table. A configuration also says what its bundle is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engines.backends.base import Array
from engines.bundle.manifest import Manifest, sealed
from engines.draw.request import Request, make_request
from engines.errors import BundleError, UsageError
from engines.foreign import parse_json
from engines.joining.orders import Order
from engines.spec.config import ModelConfig
from engines.spec.contract import TensorSpec
from engines.spec.sampling import OPTIONS
from engines.words import quoted

TYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
"""Triton's names of numpy's types."""
# Types are Triton's, as requests spell them; dimensions are without the leading one, the images of a request.
INPUTS = (
    TensorSpec("class", "INT64", ("1",), "index; the number of classes stands for no class"),
    TensorSpec("label", "BYTES", ("1",), "instead of `class`: a label of the bundle in any case, or `none`"),
    TensorSpec("seed", "UINT64", ("1",), "decides the draws; 0 where it is not given"),
    *(TensorSpec(option.name, TYPES[option.dtype], ("1",), option.meaning) for option in OPTIONS),
    TensorSpec("picture", "UINT8", ("R", "R", "3"), "RGB, of which a part is redrawn; the class may then be left out"),
    TensorSpec("redrawn", "BOOL", ("S", "S"), "the cells that are redrawn; none where it is not given"),
)
_BY_NAME = {tensor.name: tensor for tensor in INPUTS}
IMAGE = TensorSpec("image", "UINT8", ("R", "R", "3"), "RGB")
OUTPUTS = (IMAGE, TensorSpec("tokens", "INT64", ("T",), "token maps of all scales, coarse to fine"))
STREAM_OUTPUTS = (
    IMAGE,
    TensorSpec("tokens", "INT64", ("-1",), "token maps so far, coarse to fine"),
    TensorSpec("scale", "INT32", ("1",), "the scale after which the image was decoded"),
    TensorSpec("final", "BOOL", ("1",), "true with the last image"),
)
PREVIEW_SCALES = "preview_scales"
"""Request parameter of the streaming model: the scales to show, as `0,3,6`, or `none` but the last; all by default."""
CANCEL = "cancel_token"
"""Request parameter between the two models of a repository; see `engines.triton.serving.cancellation`."""
_DIGITS = 9
FACTS = "manifest"
"""Parameter of a configuration: what `pack_facts` gives."""


def pack_facts(manifest: Manifest) -> str:
    """The manifest as one line of JSON, without what is long or tells of the machine that built the bundle."""
    return json.dumps(sealed(manifest.to_dict() | {"graphs": {}, "plans": [], "figures": {}, "provenance": {}}))


def unpack_facts(text: str, source: str) -> Manifest:
    """What `pack_facts` gave. Raises `BundleError`; `source` says where the text is from."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{source} says nothing of a bundle: write the repository again") from error
    return Manifest.from_dict(document, source)


def dims_of(tensor: TensorSpec, config: ModelConfig) -> list[int]:
    """Numbers for the dimensions of a tensor; -1 varies."""
    sizes = {"R": config.image_size, "S": config.latent_size, "T": config.num_tokens}
    return [sizes[dim] if dim in sizes else int(dim) for dim in tensor.dims]


Get = Callable[[str], Array | None]
"""Of a request: an input (images, ...) by name, or None where it does not have it."""


def read_order(get: Get, bundle: Manifest) -> Order:
    """What a request asks for; classes and defaults are those of `bundle`. Raises `UsageError`."""
    pictures, redrawn, side = get("picture"), get("redrawn"), bundle.config.latent_size
    if pictures is None:
        if redrawn is not None:
            raise UsageError("the input redrawn needs picture, of which these cells are")
        return Order(_read_request(get, bundle, None))
    _check_shape("picture", pictures, pictures.shape[:1], bundle.config)
    redrawn = np.zeros((len(pictures), side, side), np.bool_) if redrawn is None else redrawn
    _check_shape("redrawn", redrawn, pictures.shape[:1], bundle.config)
    request = _read_request(get, bundle, len(pictures))
    if len(request) != len(pictures):
        raise UsageError(f"{len(pictures)} pictures for {len(request)} images: give one for each")
    return Order(request, pictures, redrawn)


def _read_request(get: Get, bundle: Manifest, pictures: int | None) -> Request:
    """The images that are asked for. `pictures`: how many are edited, where it is an edit."""
    columns = {name: get(name) for name in ("seed", *(option.name for option in OPTIONS))}
    given: dict[str, Any] = {name: _rows(name, column) for name, column in columns.items() if column is not None}
    if pictures is not None and get("class") is None and get("label") is None:
        classes: list[int | str] = [bundle.config.unconditional_class] * pictures
    else:
        classes = _classes(get)
    seeds = given.pop("seed", np.zeros(len(classes), np.uint64))
    return make_request(bundle, classes, seeds=seeds, **given)


def full_inputs(order: Order) -> dict[str, Array]:
    """Inputs (images, ...) that ask for the same and leave nothing to defaults."""
    request = order.request
    values = {"class": request.classes, "seed": request.seeds, **request.sampling}
    inputs = {name: value[:, None] for name, value in values.items()}
    if order.pictures is not None and order.redrawn is not None:
        inputs |= {"picture": order.pictures, "redrawn": order.redrawn}
    return inputs


def read_parameters(text: str | None) -> Mapping[str, Any]:
    """The parameters of a request, which Triton hands over as JSON. Raises `UsageError`."""
    try:
        parameters = parse_json(text or "{}")
    except ValueError as error:
        raise UsageError(f"the request's parameters cannot be read: {error}") from error
    if not isinstance(parameters, dict):
        raise UsageError("the request's parameters must be an object of JSON")
    return parameters


def read_preview_scales(text: str | None, scales: int) -> tuple[int, ...]:
    """The scales that the parameter `preview_scales` names. Raises `UsageError`."""
    if text is None or not text.strip():
        return tuple(range(scales))
    if text.strip().lower() == "none":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < _DIGITS and int(part) < scales for part in parts):
        raise UsageError(
            f"preview_scales must be scales from 0 to {scales - 1} with commas, or none, got {quoted(text)}"
        )
    return tuple(int(part) for part in parts)


def _classes(get: Get) -> list[int | str]:
    index, label = get("class"), get("label")
    if (index is None) == (label is None):
        raise UsageError("give one of the inputs class and label" + ("" if index is None else ", not both"))
    if index is not None:
        return [int(value) for value in _rows("class", index)]
    try:
        return [bytes(value).decode("utf-8") for value in _rows("label", label)]
    except UnicodeDecodeError as error:
        raise UsageError(f"label must be UTF-8 text: {error}") from error


def _check_shape(name: str, value: Array, images: tuple[int, ...], config: ModelConfig) -> None:
    wanted = (*images, *dims_of(_BY_NAME[name], config))
    if value.shape != wanted:
        raise UsageError(f"{name} must have the shape {wanted}, got {value.shape}")


def _rows(name: str, value: Array | None) -> Array:
    if value is None or value.ndim != 2 or value.shape[1] != 1:
        raise UsageError(f"{name} must have the shape (images, 1), got {None if value is None else value.shape}")
    return value[:, 0]
