"""What requests and responses hold: one table of tensors, and the way from a request's tensors to values and back.

Configurations, models, client and docs read the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.base import Array
from engines.bundle.manifest import Manifest
from engines.draw.request import Request, make_request
from engines.errors import UsageError
from engines.spec.config import ModelConfig
from engines.spec.sampling import OPTIONS


@dataclass(frozen=True)
class WireTensor:
    """One input or output; every one has a leading axis of the images of its request."""

    name: str
    dtype: str
    """Triton's name, as requests spell it."""
    dims: tuple[str, ...]
    """Without the axis of images: numbers or names."""
    meaning: str


TYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
"""Triton's names of numpy's types."""
INPUTS = (
    WireTensor("class", "INT64", ("1",), "index; the number of classes stands for no class"),
    WireTensor("label", "BYTES", ("1",), "instead of `class`: a label of the bundle in any case, or `none`"),
    WireTensor("seed", "UINT64", ("1",), "decides the draws; 0 where it is not given"),
    *(WireTensor(option.name, TYPES[option.dtype], ("1",), option.meaning) for option in OPTIONS),
)
IMAGE = WireTensor("image", "UINT8", ("R", "R", "3"), "RGB")
OUTPUTS = (IMAGE, WireTensor("tokens", "INT64", ("T",), "token maps of all scales, coarse to fine"))
STREAM_OUTPUTS = (
    IMAGE,
    WireTensor("tokens", "INT64", ("-1",), "token maps so far, coarse to fine"),
    WireTensor("scale", "INT32", ("1",), "the scale after which the image was decoded"),
    WireTensor("final", "BOOL", ("1",), "true with the last image"),
)
PREVIEW_SCALES = "preview_scales"
"""Request parameter of the streaming model: the scales to show, as `0,3,6`, or `none` but the last; all by default."""
CANCEL = "cancel_token"
"""Request parameter between the two models of a repository; see `engines.triton.serving.cancellation`."""


def dims_of(tensor: WireTensor, config: ModelConfig) -> list[int]:
    """Numbers for the dimensions of a tensor; -1 varies."""
    sizes = {"R": config.image_size, "T": config.num_tokens}
    return [sizes[dim] if dim in sizes else int(dim) for dim in tensor.dims]


Get = Callable[[str], Array | None]
"""Of a request: an input (images, 1) by name, or None where it does not have it."""


def read_request(get: Get, bundle: Manifest) -> Request:
    """The images that a request asks for.

    Args:
        get: an input by name, (images, 1), or None where the request does not have it.
        bundle: whose classes and defaults count; its files are not read.

    Raises `UsageError`.
    """
    columns = {name: get(name) for name in ("seed", *(option.name for option in OPTIONS))}
    given: dict[str, Any] = {name: _rows(name, column) for name, column in columns.items() if column is not None}
    classes = _classes(get)
    seeds = given.pop("seed", np.zeros(len(classes), np.uint64))
    return make_request(bundle, classes, seeds=seeds, **given)


def full_inputs(request: Request) -> dict[str, Array]:
    """Inputs (images, 1) that ask for the same and leave nothing to defaults."""
    values = {"class": request.classes, "seed": request.seeds, **request.sampling}
    return {name: value[:, None] for name, value in values.items()}


def read_preview_scales(text: str | None, scales: int) -> tuple[int, ...]:
    """The scales that the parameter `preview_scales` names. Raises `UsageError`."""
    if text is None or not text.strip():
        return tuple(range(scales))
    if text.strip().lower() == "none":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < scales for part in parts):
        raise UsageError(f"preview_scales must be scales from 0 to {scales - 1} with commas, or none, got {text!r:.60}")
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


def _rows(name: str, value: Array | None) -> Array:
    if value is None or value.ndim != 2 or value.shape[1] != 1:
        raise UsageError(f"{name} must have the shape (images, 1), got {None if value is None else value.shape}")
    return value[:, 0]
