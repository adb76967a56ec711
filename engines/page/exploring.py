"""The tab that shows what settings do, and what each scale adds: pictures, and the tokens behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import numpy as np

from engines.errors import UsageError
from engines.page.artist import Artist, State, telling
from engines.page.drawing import seen, waiting
from engines.page.sidebar import Sidebar
from engines.pictures.grids import Layout, grid
from engines.pictures.images import Picture
from engines.pictures.token_maps import token_maps

MOST = 36
"""Images of one grid."""


class ExploreTab:
    """A grid of guidance by top-p, and the scales of one image."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        private: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        gr.Markdown("### Guidance by top-p")
        with gr.Row(equal_height=True):
            cfg = gr.Textbox("0, 1, 2, 4", label="Guidance", elem_id="grid-cfg")
            top_p = gr.Textbox("0.3, 0.6, 0.9", label="Top-p", elem_id="grid-top-p")
            draw = gr.Button("Draw the grid", variant="primary", elem_id="draw-grid")
        self._status = gr.Markdown("One class and one seed, with every pair of values.", elem_id="grid-status")
        shown = gr.Image(label="Grid", format="png", interactive=False, buttons=["download", "fullscreen"],
                         elem_id="grid", visible=False)  # fmt: skip
        gr.Markdown("### Scale by scale")
        scales = gr.Button("Draw the scales", variant="primary", elem_id="draw-scales")
        self._told = gr.Markdown("The image after each scale, and below it the tokens that the scale drew: a colour "
                                 "for each entry of the codebook.", elem_id="scales-status")  # fmt: skip
        maps = gr.Image(label="Scales and tokens", format="png", interactive=False,
                        buttons=["download", "fullscreen"], elem_id="scales", visible=False)  # fmt: skip
        draw.click(self._grid, [cfg, top_p, *sidebar.inputs], [shown, self._status], **private)
        scales.click(self._scales, sidebar.inputs, [maps, self._told], **private)

    async def _grid(self, cfg: str, top_p: str, *values: Any) -> AsyncIterator[list[Any]]:
        with telling():
            wish = self._sidebar.wish(values)
            rows, columns = _numbers(top_p, "top-p"), _numbers(cfg, "guidance")
            if len(rows) * len(columns) > MOST:
                raise UsageError(f"a grid has up to {MOST} images here, not {len(rows) * len(columns)}")
            count = len(rows) * len(columns)
            request = wish.request(
                seeds=[wish.seed] * count, cfg=np.tile(columns, len(rows)), top_p=np.repeat(rows, len(columns))
            )
            yield [gr.skip(), waiting(wish.model)]
            state = await self._artist.finished(wish.model, request)
            above, beside = ([f"{name} {value:g}" for value in them] for name, them in (("cfg", columns), ("p", rows)))
            layout = Layout(len(columns), tuple(above), tuple(beside))
            (file,) = await self._artist.shelf.put([grid(_enlarged(state.images), count, layout)])
            yield [seen(file), f"Done: {count} images of seed {wish.seed}."]

    async def _scales(self, *values: Any) -> AsyncIterator[list[Any]]:
        with telling():
            wish = self._sidebar.wish(values)
            config = wish.model.bundle.config
            request = wish.request(count=1)
            yield [gr.skip(), waiting(wish.model)]
            passed: list[Picture] = []
            state = State()
            async for state in self._artist.draw(wish.model, request, tuple(range(config.num_scales - 1))):
                passed.append(state.images[0])
            sides = config.patch_nums
            images = [*_enlarged(passed), *token_maps(state.tokens[0], sides, len(_enlarged(passed)[0]))]
            layout = Layout(len(sides), tuple(f"{side} x {side}" for side in sides))
            (file,) = await self._artist.shelf.put([grid(images, len(images), layout)])
            yield [seen(file), f"Done: {config.num_tokens} tokens in {len(sides)} scales."]


def _numbers(text: str, name: str) -> list[float]:
    """The numbers of a list with commas. Raises `UsageError`."""
    try:
        return [float(part) for part in text.split(",") if part.strip()] or [float(text)]
    except ValueError:
        raise UsageError(f"{name} must be numbers with commas, such as 1, 2, 4; got {text[:40]!r}") from None


def _enlarged(images: list[Picture], least: int = 128) -> list[Picture]:
    """Small images made larger by whole factors, so that labels fit above them."""
    factor = max(1, -(-least // images[0].shape[0]))
    return [image.repeat(factor, 0).repeat(factor, 1) for image in images]
