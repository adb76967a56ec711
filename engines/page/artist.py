"""What a page's tabs draw with: the models of a server, behind the same queues as the API.

request --> Artist.draw --> State after each scale --> a tab shows it
"""

from __future__ import annotations

import html
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.draw.request import Request
from engines.errors import VarExportError
from engines.page.shelf import Shelf
from engines.pictures.images import Picture
from engines.serve.models import Models, ServedModel
from engines.serve.waiting import drawn

log = logging.getLogger(__name__)
Step = dict[Any, Any]
"""New values of components of the page, by component."""
SHOWN_OF_SEVERAL = 3
"""Scales that are shown of several images: each costs a run of the decoder for every one."""


@dataclass
class State:
    """The images of a request, as far as they have come."""

    images: list[Picture] = field(default_factory=list)
    tokens: list[NDArray[Any]] = field(default_factory=list)
    """The tokens of each image, coarse to fine: (t,), up to the scale that was reached."""
    scale: int = -1
    final: bool = False


class Artist:
    """The models of a server, for a page."""

    def __init__(self, models: Models, seconds: float, shelf: Shelf) -> None:
        """Args: seconds: what a request may take, waiting and drawing; shelf: for what browsers are shown."""
        self.models, self._seconds, self.shelf = models, seconds, shelf

    @property
    def names(self) -> list[str]:
        """What the models are called."""
        return [model.name for model in self.models]

    async def draw(
        self,
        model: ServedModel,
        request: Request,
        scales: tuple[int, ...] = (),
        edit: tuple[Array, Array] | None = None,
    ) -> AsyncGenerator[State, None]:
        """The images after each of `scales`, and at the end; `edit` is as of `engines.serve.waiting.drawn`.

        Raises what that raises.
        """
        images: dict[int, tuple[Picture, NDArray[Any]]] = {}
        finished = 0
        previews = drawn(self.models, model, request, time.monotonic() + self._seconds, scales, edit)
        async with aclosing(previews):
            async for first, preview in previews:
                for place, (image, tokens) in enumerate(zip(preview.images, preview.tokens, strict=True), first):
                    images[place] = image, tokens
                finished += preview.final * len(preview.images)
                found = [images[place] for place in sorted(images)]
                drawn_so_far = [image for image, _ in found], [tokens for _, tokens in found]
                yield State(*drawn_so_far, preview.scale, finished == len(request))

    async def finished(self, model: ServedModel, request: Request, **edit: Any) -> State:
        """The finished images alone. Raises as `draw`."""
        state = State()
        async for each in self.draw(model, request, **edit):
            state = each
        return state


def plain(name: str) -> str:
    """A name that Markdown takes for nothing but a name."""
    return re.sub(r"([^\w\s])", r"\\\1", name)


def scales_shown(model: ServedModel, images: int) -> tuple[int, ...]:
    """The scales after which so many images are shown while they are drawn: all of one image, some of several."""
    last = model.bundle.config.num_scales - 1
    if images == 1:
        return tuple(range(last))
    return tuple(sorted({(k + 1) * last // (SHOWN_OF_SEVERAL + 1) for k in range(SHOWN_OF_SEVERAL)}))


def pressed(work: Callable[..., AsyncGenerator[Step, None]], status: Any) -> Callable[..., AsyncGenerator[Step, None]]:
    """What a button does: the steps of `work`; where one fails, the line `status` says so, and not how far it was."""

    async def steps(*values: Any) -> AsyncGenerator[Step, None]:
        try:
            with telling():
                async with aclosing(work(*values)) as found:
                    async for step in found:
                        yield step
        except gr.Error:
            yield {status: "Not done."}
            raise

    return steps


@contextmanager
def telling() -> Iterator[None]:
    """Around what a button does: people see what went wrong, and the log alone has what is not theirs."""
    try:
        yield
    except VarExportError as error:
        raise _shown(error) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("the page failed")
        raise _shown("internal error; the server's log has it") from error


def _shown(message: object) -> gr.Error:
    return gr.Error(html.escape(str(message)), duration=None, print_exception=False, title="This cannot be done")
