"""One batch over the requests of several clients, each with settings of its own.

    members --> Pipeline.stream over all their images --> to each member what is its own, scale by scale

Images do not depend on the batch they are drawn in. A member that has gone gets no more of them, and the batch stops
within a scale when nobody waits for it any more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.draw.results import Preview
from engines.joining.orders import Order

JOIN_SHARE, JOIN_SECONDS = 1 / 20, 0.01
"""After a batch of several requests: the part of its time, and the most, that its clients get to come back. Else the
next batch starts with whoever waits already: eight clients in turn got 3.7 images a batch, and 5.2 with this."""
Count = Callable[[str, Mapping[str, str], float], None]
"""Adds to one of `METRICS`: its name, labels, by how much."""
METRICS = {
    "var_images_total": "Images by result: drawn, cancelled or failed",
    "var_batches_total": "Batches that the engines ran; images drawn per batch are their fill",
    "var_scale_seconds_total": "Seconds that the engines took for each scale, summed over batches",
    "var_decode_seconds_total": "Seconds that the decoder took for the final images",
}


class Member(Protocol):
    """One request of a batch."""

    @property
    def order(self) -> Order:
        """The images that the member asks for."""

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales after which it is shown its images; the last one always."""

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more; once gone, always gone."""

    def show(self, preview: Preview) -> None:
        """Take the member's images as they stand after one scale."""


def draw_joined(pipeline: Pipeline, members: Sequence[Member], count: Count) -> None:
    """Draw what all members ask for, which is at most `pipeline.max_batch` images, and show each its own.

    Raises what `Pipeline.stream` does: `CancelledError` where all have gone.
    """
    orders = [member.order for member in members]
    requests = [order.request for order in orders]
    classes, seeds = (np.concatenate([getattr(r, name) for r in requests]) for name in ("classes", "seeds"))
    sampling: Any = {name: np.concatenate([r.sampling[name] for r in requests]) for name in requests[0].sampling}
    scales = [member.scales for member in members for _ in range(len(member.order))]
    firsts = np.cumsum([0, *map(len, requests)])
    count("var_batches_total", {}, 1)
    previews = pipeline.stream(
        classes,
        seeds=seeds,
        preview_scales=scales,
        forced=_kept(pipeline, orders),
        stop=lambda: all(member.is_gone() for member in members),
        **sampling,
    )
    for preview in previews:
        if preview.timings is not None:
            for scale, seconds in enumerate(preview.timings.scales):
                count("var_scale_seconds_total", {"scale": str(scale)}, seconds)
            count("var_decode_seconds_total", {}, preview.timings.decode)
        for first, member in zip(firsts, members, strict=False):
            at = np.flatnonzero(preview.which == first)
            if not len(at) or member.is_gone():
                continue
            own = slice(int(at[0]), int(at[0]) + len(member.order))
            if preview.final:
                count("var_images_total", {"result": "drawn"}, len(member.order))
            which = preview.which[own] - int(first)
            member.show(
                dataclasses.replace(preview, images=preview.images[own], tokens=preview.tokens[own], which=which)
            )


def let_join(began: float, members: int) -> None:
    """After a batch of so many members that began at this `time.monotonic()`: wait for its clients to come back."""
    if members > 1:
        time.sleep(min(JOIN_SECONDS, JOIN_SHARE * (time.monotonic() - began)))


def _kept(pipeline: Pipeline, orders: Sequence[Order]) -> tuple[Array, Array] | None:
    """Tokens (B, T) of the pictures that are edited, and where they are kept; None where there are none."""
    edits = [(order.pictures, order.redrawn) for order in orders if order.pictures is not None]
    if not edits:
        return None
    pictures, redrawn = (np.concatenate(arrays) for arrays in zip(*edits, strict=True))
    edited = np.repeat([order.pictures is not None for order in orders], [len(order) for order in orders])
    shape = (len(edited), pipeline.config.num_tokens)
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    tokens[edited], mask[edited] = pipeline.keeping(pictures, redrawn)["forced"]
    return tokens, mask
