"""What the streaming model does with requests: one batch over all of them, each with settings of its own.

It knows no Triton. `Incoming` is what it needs of a request; a wrong request fails alone, a cancelled one gets no
more images, and the batch stops within a scale when nobody waits for it any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.draw.results import Preview
from engines.errors import CancelledError, OutOfMemoryError, UsageError, VarExportError
from engines.triton.wire import PREVIEW_SCALES, Order, read_order, read_preview_scales

log = logging.getLogger(__name__)

INVALID, CANCELLED, UNAVAILABLE, INTERNAL = "INVALID_ARG", "CANCELLED", "UNAVAILABLE", "INTERNAL"
"""Triton's error codes."""
UNEXPECTED = "internal error; the server's log has it"
JOIN_SHARE, JOIN_SECONDS = 1 / 20, 0.01
"""After a batch of several requests: the part of its time, and the most, that its clients get to come back. Else the
next batch starts with whoever waits already: eight clients in turn got 3.7 images a batch, and 5.2 with this."""
Count = Callable[[str, Mapping[str, str], float], None]
METRICS = {
    "var_images_total": "Images by result: drawn, cancelled or failed",
    "var_batches_total": "Batches that the engines ran; images drawn per batch are their fill",
    "var_scale_seconds_total": "Seconds that the engines took for each scale, summed over batches",
    "var_decode_seconds_total": "Seconds that the decoder took for the final images",
}


class Asked(Protocol):
    """A request of either model, as a server hands it over."""

    def tensor(self, name: str) -> Array | None:
        """An input (images, ...), or None where it is not given."""

    def cancelled(self) -> bool:
        """Whether the client has gone or asked to stop."""

    def fail(self, code: str, message: str) -> None:
        """The last response: an error with one of Triton's codes."""


class Incoming(Asked, Protocol):
    """A request of the streaming model."""

    def parameter(self, name: str) -> str | None:
        """A request parameter as text, or None where it is not given."""

    def send(self, outputs: Mapping[str, Array], *, final: bool) -> None:
        """One response; the last one where `final`."""


@dataclass
class Member:
    """One request of a batch."""

    incoming: Incoming
    order: Order
    scales: tuple[int, ...]
    first: int = 0
    """Place of its first image in the batch."""
    gone: bool = False

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more; once gone, always gone."""
        self.gone = self.gone or self.incoming.cancelled()
        return self.gone


class Service:
    """A pipeline that answers requests."""

    def __init__(self, pipeline: Pipeline, count: Count) -> None:
        """Args: pipeline: closed by `close`; count: adds to one of `METRICS`, by name and labels."""
        self._pipeline, self._count = pipeline, count

    @classmethod
    def load(cls, bundle: Path, count: Count, *, max_batch: int, **runtime: Any) -> Service:
        """Open a bundle for batches of `max_batch` images. `runtime`: as of `Pipeline.load`.

        Raises `BundleError`, `BackendError`, and `UsageError` where the engines hold smaller batches only.
        """
        pipeline = Pipeline.load(bundle, form="stepwise", max_batch=max_batch, **runtime)
        if pipeline.max_batch < max_batch:
            pipeline.close()
            raise UsageError(
                f"the engines of {bundle} hold {pipeline.max_batch} images, the configuration allows {max_batch}: "
                f"write the repository again with --max-batch {pipeline.max_batch}"
            )
        return cls(pipeline, count)

    def run(self, batch: Sequence[Incoming]) -> None:
        """Answer every request of a batch; raises nothing.

        It returns when all are answered: Triton fails the requests of a process that died in the middle, but would wait
        for ever for those that a thread of that process was to answer later.
        """
        began = time.monotonic()
        members = [member for member in map(self._accept, batch) if member is not None]
        if members:
            self._answer(members)
        if len(members) > 1:
            time.sleep(min(JOIN_SECONDS, JOIN_SHARE * (time.monotonic() - began)))

    def close(self) -> None:
        """Free the engines."""
        self._pipeline.close()

    def _accept(self, incoming: Incoming) -> Member | None:
        bundle = self._pipeline.bundle
        try:
            order = read_order(incoming.tensor, bundle)
            scales = read_preview_scales(incoming.parameter(PREVIEW_SCALES), bundle.config.num_scales)
        except UsageError as error:
            incoming.fail(INVALID, str(error))
            return None
        except Exception:  # of this request alone: the others of its batch go on
            log.exception("a request could not be read")
            incoming.fail(INTERNAL, UNEXPECTED)
            return None
        member = Member(incoming, order, scales)
        if member.is_gone():  # while it waited: it takes no place in the batch
            self._cancel(member)
            return None
        return member

    def _answer(self, members: Sequence[Member]) -> None:
        try:
            self._draw(members)
        except CancelledError:
            pass  # each member says so below
        except OutOfMemoryError as error:
            self._fail(members, UNAVAILABLE, str(error))
        except VarExportError as error:
            self._fail(members, INTERNAL, str(error))
        except Exception:
            log.exception("a batch failed")
            self._fail(members, INTERNAL, UNEXPECTED)
        for member in members:
            if member.gone:
                self._cancel(member)

    def _draw(self, members: Sequence[Member]) -> None:
        orders = [member.order for member in members]
        requests = [order.request for order in orders]
        classes, seeds = (np.concatenate([getattr(r, name) for r in requests]) for name in ("classes", "seeds"))
        sampling: Any = {name: np.concatenate([r.sampling[name] for r in requests]) for name in requests[0].sampling}
        scales = [member.scales for member in members for _ in range(len(member.order))]
        for first, member in zip(np.cumsum([0, *map(len, requests)]), members, strict=False):
            member.first = int(first)
        self._count("var_batches_total", {}, 1)
        previews = self._pipeline.stream(
            classes,
            seeds=seeds,
            preview_scales=scales,
            forced=self._kept(orders),
            stop=lambda: all(member.is_gone() for member in members),
            **sampling,
        )
        for preview in previews:
            if preview.timings is not None:
                for scale, seconds in enumerate(preview.timings.scales):
                    self._count("var_scale_seconds_total", {"scale": str(scale)}, seconds)
                self._count("var_decode_seconds_total", {}, preview.timings.decode)
            for member in members:
                self._show(member, preview)

    def _kept(self, orders: Sequence[Order]) -> tuple[Array, Array] | None:
        """Tokens (B, T) of the pictures that are edited, and where they are kept; None where there are none."""
        edits = [(order.pictures, order.redrawn) for order in orders if order.pictures is not None]
        if not edits:
            return None
        pictures, redrawn = (np.concatenate(arrays) for arrays in zip(*edits, strict=True))
        edited = np.repeat([order.pictures is not None for order in orders], [len(order) for order in orders])
        shape = (len(edited), self._pipeline.config.num_tokens)
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        tokens[edited], mask[edited] = self._pipeline.keeping(pictures, redrawn)["forced"]
        return tokens, mask

    def _show(self, member: Member, preview: Preview) -> None:
        images = len(member.order)
        at = np.flatnonzero(preview.which == member.first)
        if not len(at) or member.is_gone():
            return
        own = slice(int(at[0]), int(at[0]) + images)
        outputs: dict[str, Array] = {
            "image": preview.images[own],
            "tokens": preview.tokens[own],
            "scale": np.full((images, 1), preview.scale, np.int32),
            "final": np.full((images, 1), preview.final, np.bool_),
        }
        if preview.final:
            self._images("drawn", member)
        member.incoming.send(outputs, final=preview.final)

    def _fail(self, members: Sequence[Member], code: str, message: str) -> None:
        for member in members:
            if not member.gone:
                self._images("failed", member)
                member.incoming.fail(code, message)

    def _cancel(self, member: Member) -> None:
        self._images("cancelled", member)
        member.incoming.fail(CANCELLED, "the request was cancelled")

    def _images(self, result: str, member: Member) -> None:
        self._count("var_images_total", {"result": result}, len(member.order))
