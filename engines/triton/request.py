"""From the tensors of one request to checked values, and to the full set of tensors again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engines.backends.base import Array
from engines.bundle.manifest import Manifest
from engines.draw.request import Request, make_request
from engines.errors import UsageError

Get = Callable[[str], Array | None]
SAMPLING = ("cfg", "temperature", "top_k", "top_p", "smooth")
"""Inputs with the names of `Request`'s fields."""


def read_request(get: Get, bundle: Manifest) -> Request:
    """The images that a request asks for.

    Args:
        get: an input by name, (images, 1), or None where the request does not have it.
        bundle: whose classes and defaults count; its files are not read.

    Raises `UsageError`.
    """
    given = {name: _column(name, get(name)) for name in ("seed", *SAMPLING)}
    classes = _classes(get)
    seed = given.pop("seed")
    return make_request(bundle, classes, seeds=np.zeros(len(classes), np.uint64) if seed is None else seed, **given)


def full_inputs(request: Request) -> dict[str, Array]:
    """Inputs (images, 1) that ask for the same and leave nothing to defaults."""
    values = {"class": request.classes, "seed": request.seeds}
    values |= {name: getattr(request, name) for name in SAMPLING}
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


def _column(name: str, value: Array | None) -> Array | None:
    return None if value is None else _rows(name, value)


def _rows(name: str, value: Array | None) -> Array:
    if value is None or value.ndim != 2 or value.shape[1] != 1:
        raise UsageError(f"{name} must have the shape (images, 1), got {None if value is None else value.shape}")
    return value[:, 0]
