"""The tab that draws the same with two models of the server, and says how far they are apart."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from engines.errors import UsageError
from engines.fidelity.side_by_side import Drawing, Pair, compare
from engines.page.artist import Artist, telling
from engines.page.drawing import seen
from engines.page.sidebar import Sidebar, Wish
from engines.serve.models import ServedModel

_BEFORE = "The same class, seeds and settings, drawn by the model on the left and by another one."
_ALONE = "This server has one model. Start it with several: `var-export serve FP32 INT8`."


class CompareTab:
    """The other model, a table, and a slider over one pair of images."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        names = artist.names
        several = len(names) > 1
        with gr.Row():
            self._other = gr.Dropdown(names, value=names[-1], label="The other model", visible=several)
            button = gr.Button("Compare", variant="primary", interactive=several, elem_id="compare")
            stop = gr.Button("Stop", interactive=several)
        self._status = gr.Markdown(_BEFORE if several else _ALONE, elem_id="compare-status")
        self._table = gr.Markdown(label="Figures", elem_id="compare-table")
        self._which = gr.Radio([], label="Shown", visible=False)
        self._slider = gr.ImageSlider(label="One model, and the other", format="png", height=420,
                                      buttons=["fullscreen"], visible=False)  # fmt: skip
        self._pairs = gr.State([])
        outputs = [self._status, self._table, self._which, self._slider, self._pairs]
        event = button.click(self._compare, [self._other, *sidebar.inputs], outputs, api_visibility="private",
                             show_progress="hidden", concurrency_limit=None)  # fmt: skip
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], api_visibility="private", queue=False)
        self._which.input(lambda pairs, place: pairs[place], [self._pairs, self._which], self._slider,
                          api_visibility="private", show_progress="hidden")  # fmt: skip

    async def _compare(self, other: str, *values: Any) -> AsyncIterator[list[Any]]:
        with telling():
            wish = self._sidebar.wish(values)
            models = wish.model, self._artist.models.find(other)
            if models[0] is models[1]:
                raise UsageError("choose another model than the one on the left")
            drawings = []
            for model in models:
                yield [f"{model.name} draws …", *[gr.skip()] * 4]
                drawings.append(await self._drawing(wish, model))
            pairs = compare(*drawings)
            files = [await self._artist.shelf.put(list(each.images)) for each in drawings]
            images = list(zip(*files, strict=True))
            choices = [(f"seed {pair.seed}", place) for place, pair in enumerate(pairs)]
            told = "Each image was drawn alone; the times are of this server, with whatever else it did."
            shown = gr.update(choices=choices, value=0, visible=len(pairs) > 1)
            yield [told, _table(drawings, pairs), shown, seen(images[0]), images]

    async def _drawing(self, wish: Wish, model: ServedModel) -> Drawing:
        """The images of one model, one by one, after one that is not counted."""
        request = wish.request(model)
        await self._artist.finished(model, wish.request(model, count=1))
        images, tokens, seconds = [], [], []
        for seed in request.seeds.tolist():
            began = time.perf_counter()
            state = await self._artist.finished(model, wish.request(model, seeds=[seed]))
            seconds.append(time.perf_counter() - began)
            images.append(state.images[0])
            tokens.append(state.tokens[0])
        bundle = model.bundle
        facts = {
            "name": model.name,
            "precision": bundle.precision,
            "bytes": bundle.total_bytes,
            "labels": [text["label"] for text in request.texts(bundle)],
            "scales": list(bundle.config.patch_nums),
            "sampling": dict(wish.sampling),
            "seconds": seconds,
            "runtime": {},
        }
        return Drawing(np.stack(images), np.stack(tokens), request.classes, request.seeds, facts)


def _table(drawings: Sequence[Drawing], pairs: Sequence[Pair]) -> str:
    one, other = (f"{each.facts['name']}, ms" for each in drawings)
    lines = [f"| seed | PSNR, dB | same tokens | first other scale | {one} | {other} |", "|---|---|---|---|---|---|"]
    for place, pair in enumerate(pairs):
        times = " | ".join(f"{1000 * each.facts['seconds'][place]:.0f}" for each in drawings)
        first = "none" if pair.first is None else str(pair.first)
        psnr = "equal" if np.isinf(pair.psnr) else f"{pair.psnr:.1f}"
        lines.append(f"| {pair.seed} | {psnr} | {100 * pair.alike:.1f} % | {first} | {times} |")
    sizes = ", ".join(f"{each.facts['name']} has {each.facts['bytes'] / 1e6:.0f} MB" for each in drawings)
    return "\n".join([*lines, "", f"{sizes}."])
