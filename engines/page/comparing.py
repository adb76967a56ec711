"""The tab that draws the same with two models of the server, and says how far they are apart."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from engines.errors import UsageError
from engines.fidelity.side_by_side import Drawing, Pair, compare
from engines.page.artist import Artist, Step, plain, pressed
from engines.page.drawing import DRAWS, STOPS, seen
from engines.page.sidebar import Sidebar, Wish
from engines.serve.models import ServedModel

_BEFORE = "The same class, seeds and settings, drawn by the model on the left and by another one."
_ALONE = "This server has one model. Start it with several: `var-export serve FP32 INT8`."
_DONE = "Each image was drawn alone; the times are of this server, with whatever else it did."


class CompareTab:
    """The other model, a table, and a slider over one pair of images."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        names = artist.names
        several = len(names) > 1
        with gr.Row():
            other = gr.Dropdown(names, value=names[-1], label="The other model", visible=several)
            button = gr.Button("Compare", variant="primary", interactive=several, elem_id="compare")
            stop = gr.Button("Stop", interactive=several)
        self._status = gr.Markdown(_BEFORE if several else _ALONE, elem_id="compare-status")
        self._table = gr.Markdown(label="Figures", elem_id="compare-table")
        self._which = gr.Radio([], label="Shown", visible=False)
        self._slider = gr.ImageSlider(
            label="One model, and the other", format="png", height=420, buttons=["fullscreen"], visible=False
        )
        self._pairs = gr.State([])
        outputs = [self._status, self._table, self._which, self._slider, self._pairs]
        event = button.click(pressed(self._steps, self._status), [other, *sidebar.inputs], outputs, **DRAWS)
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], **STOPS)
        self._which.input(_chosen, [self._pairs, self._which], self._slider, **DRAWS)

    async def _steps(self, other: str, *values: Any) -> AsyncGenerator[Step, None]:
        wish = self._sidebar.wish(values)
        models = wish.model, self._artist.models.find(other)
        if models[0] is models[1]:
            raise UsageError("choose another model than the one on the left")
        sizes = [model.bundle.config.image_size for model in models]
        if sizes[0] != sizes[1]:
            raise UsageError(f"the one draws {sizes[0]} pixels, the other {sizes[1]}: compare models of one size")
        drawings: list[Drawing] = []
        for model in models:
            images = []
            yield {self._status: f"{plain(model.name)} draws …"}
            await self._artist.finished(model, wish.request(model, seeds=wish.seeds[:1]))  # which is not counted
            for place in range(wish.count):
                images.append(await self._image(wish, model, place))
                yield {self._status: f"{plain(model.name)} draws: {place + 1} of {wish.count} …"}
            drawings.append(_drawing(wish, model, images))
        pairs = compare(*drawings)
        files = [await self._artist.shelf.put(list(each.images)) for each in drawings]
        sides = list(zip(*files, strict=True))
        choices = [(f"seed {pair.seed}", place) for place, pair in enumerate(pairs)]
        yield {
            self._status: _DONE,
            self._table: _table(drawings, pairs),
            self._which: gr.update(choices=choices, value=0, visible=len(pairs) > 1),
            self._slider: seen(sides[0]),
            self._pairs: sides,
        }

    async def _image(self, wish: Wish, model: ServedModel, place: int) -> tuple[Any, Any, float]:
        """One image, its tokens, and the seconds that it took."""
        began = time.perf_counter()
        state = await self._artist.finished(model, wish.request(model, seeds=wish.seeds[place : place + 1]))
        return state.images[0], state.tokens[0], time.perf_counter() - began


def _chosen(pairs: Sequence[Any], place: int) -> Any:
    return pairs[place] if place is not None and place < len(pairs) else gr.skip()


def _drawing(wish: Wish, model: ServedModel, drawn: Sequence[tuple[Any, Any, float]]) -> Drawing:
    bundle, request = model.bundle, wish.request(model)
    facts = {
        "name": model.name,
        "precision": bundle.precision,
        "bytes": bundle.total_bytes,
        "labels": [text["label"] for text in request.texts(bundle)],
        "scales": list(bundle.config.patch_nums),
        "sampling": dict(wish.sampling),
        "seconds": [seconds for *_, seconds in drawn],
        "runtime": {},
    }
    images, tokens = (np.stack([each[k] for each in drawn]) for k in range(2))
    return Drawing(images, tokens, request.classes, request.seeds, facts)


def _table(drawings: Sequence[Drawing], pairs: Sequence[Pair]) -> str:
    names = [plain(str(each.facts["name"])) for each in drawings]
    one, other = (f"{name}, ms" for name in names)
    lines = [f"| seed | PSNR, dB | same tokens | first other scale | {one} | {other} |", "|---|---|---|---|---|---|"]
    for place, pair in enumerate(pairs):
        times = " | ".join(f"{1000 * each.facts['seconds'][place]:.0f}" for each in drawings)
        first = "none" if pair.first is None else str(pair.first)
        psnr = "equal" if np.isinf(pair.psnr) else f"{pair.psnr:.1f}"
        lines.append(f"| {pair.seed} | {psnr} | {100 * pair.alike:.1f} % | {first} | {times} |")
    sizes = (f"{name} has {each.facts['bytes'] / 1e6:.0f} MB" for name, each in zip(names, drawings, strict=True))
    return "\n".join([*lines, "", f"{', '.join(sizes)}."])
