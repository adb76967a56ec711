"""The tab that shows what settings do, and what each scale adds: pictures, and the tokens behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr
import numpy as np

from engines.errors import UsageError
from engines.page.artist import Artist, State, Step, pressed, scales_shown
from engines.page.drawing import DRAWS, STOPS, progress, seen, waiting
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
        gr.Markdown("### Guidance by top-p")
        with gr.Row(equal_height=True):
            cfg = gr.Textbox("0, 1, 2, 4", label="Guidance", elem_id="grid-cfg")
            top_p = gr.Textbox("0.3, 0.6, 0.9", label="Top-p", elem_id="grid-top-p")
            draw = gr.Button("Draw the grid", variant="primary", elem_id="draw-grid")
            stop = gr.Button("Stop")
        self._status = gr.Markdown("One class and one seed, with every pair of values.", elem_id="grid-status")
        shown = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "visible": False}
        self._grid = gr.Image(label="Grid", elem_id="grid", **shown)
        gr.Markdown("### Scale by scale")
        scales = gr.Button("Draw the scales", variant="primary", elem_id="draw-scales")
        self._told = gr.Markdown(
            "The image after each scale, and below it the tokens that the scale drew: a colour for each entry of the "
            "codebook.",
            elem_id="scales-status",
        )
        self._maps = gr.Image(label="Scales and tokens", elem_id="scales", **shown)
        event = draw.click(
            pressed(self._grid_steps, self._status), [cfg, top_p, *sidebar.inputs], [self._grid, self._status], **DRAWS
        )
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], **STOPS)
        scales.click(pressed(self._scale_steps, self._told), sidebar.inputs, [self._maps, self._told], **DRAWS)

    async def _grid_steps(self, cfg: str | None, top_p: str | None, *values: Any) -> AsyncGenerator[Step, None]:
        wish = self._sidebar.wish(values)
        rows, columns = _numbers(top_p or "", "top-p"), _numbers(cfg or "", "guidance")
        count = len(rows) * len(columns)
        if count > MOST:
            raise UsageError(f"a grid has up to {MOST} images here, not {count}")
        request = wish.request(
            seeds=[wish.seed] * count, cfg=np.tile(columns, len(rows)), top_p=np.repeat(rows, len(columns))
        )
        yield {self._status: waiting(wish.model)}
        state = State()
        states = self._artist.draw(wish.model, request, scales_shown(wish.model, count))
        async with aclosing(states):
            async for state in states:
                if not state.final:  # and may be stopped here
                    yield {self._status: progress(state, wish.model)}
        above, beside = ([f"{name} {value:g}" for value in them] for name, them in (("cfg", columns), ("p", rows)))
        layout = Layout(len(columns), tuple(above), tuple(beside))
        sheet = await asyncio.to_thread(grid, _enlarged(state.images), count, layout)
        (file,) = await self._artist.shelf.put([sheet])
        yield {self._grid: seen(file), self._status: f"Done: {count} images of seed {wish.seed}."}

    async def _scale_steps(self, *values: Any) -> AsyncGenerator[Step, None]:
        wish = self._sidebar.wish(values)
        config = wish.model.bundle.config
        request = wish.request(seeds=wish.seeds[:1])
        yield {self._told: waiting(wish.model)}
        passed: list[Picture] = []
        state = State()
        states = self._artist.draw(wish.model, request, tuple(range(config.num_scales - 1)))
        async with aclosing(states):
            async for state in states:
                passed.append(state.images[0])
                if not state.final:
                    yield {self._told: progress(state, wish.model)}
        sides = config.patch_nums
        large = _enlarged(passed)
        images = [*large, *token_maps(state.tokens[0], sides, len(large[0]))]
        layout = Layout(len(sides), tuple(f"{side} x {side}" for side in sides))
        sheet = await asyncio.to_thread(grid, images, len(images), layout)
        (file,) = await self._artist.shelf.put([sheet])
        yield {self._maps: seen(file), self._told: f"Done: {config.num_tokens} tokens in {len(sides)} scales."}


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
