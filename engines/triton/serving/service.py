"""What the streaming model does with requests: one batch over all of them, each with settings of its own.

It knows no Triton. `Incoming` is what it needs of a request; a wrong request fails alone, a cancelled one gets no
more images, and the batch stops within a scale when nobody waits for it any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.draw.results import Preview
from engines.errors import CancelledError, OutOfMemoryError, UsageError, VarExportError
from engines.joining.batch import Count, draw_joined, let_join
from engines.joining.orders import Order
from engines.triton.wire import PREVIEW_SCALES, read_order, read_preview_scales

log = logging.getLogger(__name__)

INVALID, CANCELLED, UNAVAILABLE, INTERNAL = "INVALID_ARG", "CANCELLED", "UNAVAILABLE", "INTERNAL"
"""Triton's error codes."""
UNEXPECTED = "internal error; the server's log has it"


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
class Answered:
    """A member of a batch that is one request of Triton's."""

    incoming: Incoming
    order: Order
    scales: tuple[int, ...]
    gone: bool = False

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more; once gone, always gone."""
        self.gone = self.gone or self.incoming.cancelled()
        return self.gone

    def show(self, preview: Preview) -> None:
        """Send one response."""
        outputs: dict[str, Array] = {
            "image": preview.images,
            "tokens": preview.tokens,
            "scale": np.full((len(self.order), 1), preview.scale, np.int32),
            "final": np.full((len(self.order), 1), preview.final, np.bool_),
        }
        self.incoming.send(outputs, final=preview.final)


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
        let_join(began, len(members))

    def close(self) -> None:
        """Free the engines."""
        self._pipeline.close()

    def _accept(self, incoming: Incoming) -> Answered | None:
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
        member = Answered(incoming, order, scales)
        if member.is_gone():  # while it waited: it takes no place in the batch
            self._cancel(member)
            return None
        return member

    def _answer(self, members: Sequence[Answered]) -> None:
        try:
            draw_joined(self._pipeline, members, self._count)
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

    def _fail(self, members: Sequence[Answered], code: str, message: str) -> None:
        for member in members:
            if not member.gone:
                self._images("failed", member)
                member.incoming.fail(code, message)

    def _cancel(self, member: Answered) -> None:
        self._images("cancelled", member)
        member.incoming.fail(CANCELLED, "the request was cancelled")

    def _images(self, result: str, member: Answered) -> None:
        self._count("var_images_total", {"result": result}, len(member.order))
