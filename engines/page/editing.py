"""The tab that redraws a part of a picture: painted, in boxes, or what a detector found; or all but that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from engines.editing.boxes import parse_box
from engines.editing.canvas import Canvas
from engines.editing.detections import Detections
from engines.editing.found import cells_of
from engines.editing.mask import Mask, check_area
from engines.errors import UsageError
from engines.files.again import AREA, area_of
from engines.page.artist import Artist, State, scales_shown, telling
from engines.page.drawing import Again, gallery, labelled, progress, seen, waiting
from engines.page.sidebar import Sidebar
from engines.pictures.images import Picture
from engines.serve.wire import MAX_PIXELS
from engines.spec.choices import FITS

_FITS = {"its middle": "crop", "squeezed": "stretch", "its edges repeated": "pad"}
_BEFORE = "Upload a picture, then paint over what is to be redrawn, or name boxes."
_PAINT = "#e5007d"


@dataclass(frozen=True)
class _Asked:
    """A picture, and what is to become of it."""

    picture: Picture
    canvas: Canvas
    cells: Mask
    composite: bool
    area: str
    """As options of a command line."""

    @property
    def before(self) -> Picture:
        """What the results stand beside: the picture, or the square that the model sees."""
        return self.picture if self.composite else self.canvas.to_square(self.picture)

    def laid(self, state: State) -> State:
        """The images laid over the picture, where that is wanted."""
        if not self.composite:
            return state
        laid = [self.canvas.lay_over(self.picture, image, self.cells) for image in state.images]
        return State(laid, state.tokens, state.scale, state.final)


class EditTab:
    """Editor, areas, results, and a slider between before and after."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        brush = gr.Brush(colors=[_PAINT], default_color=_PAINT, color_mode="fixed")
        self._editor = gr.ImageEditor(label="Picture", type="numpy", sources=["upload", "clipboard"], transforms=[],
                                      layers=False, brush=brush, format="png", height=420,
                                      elem_id="editor", buttons=[])  # fmt: skip
        with gr.Row():
            self._boxes = gr.Textbox("", label="Boxes", lines=2, placeholder="0.25,0.25,0.75,0.75", elem_id="boxes",
                                     info="x0,y0,x1,y1 on each line: pixels, or fractions to 1")  # fmt: skip
            self._outpaint = gr.Checkbox(label="Outpaint", info="keep that part, and redraw the rest")
        with gr.Accordion("What a detector found, and how the picture fits", open=False):
            self._file = gr.File(label="File of COCO, Ultralytics or YOLO", file_types=[".json", ".txt"])
            self._objects = gr.Textbox("", label="Only these objects", placeholder="cat, dog")
            self._fit = gr.Radio(list(_FITS.items()), value=FITS[0], label="A picture becomes a square by")
            self._composite = gr.Checkbox(True, label="Composite", info="lay what was redrawn over the original")
        with gr.Row():
            redraw = gr.Button("Redraw", variant="primary", elem_id="redraw")
            stop = gr.Button("Stop")
        self._status = gr.Markdown(_BEFORE, elem_id="edit-status")
        self._slider = gr.ImageSlider(label="Before and after", format="png", buttons=["fullscreen"], height=420,
                                      visible=False)  # fmt: skip
        self._gallery = gallery("Redrawn", "redrawn", visible=False)
        self._again, self._shown = Again(sidebar), gr.State([])
        self._before, self._after = gr.State(None), gr.State([])
        event = redraw.click(
            self._redraw, [*self._controls, *sidebar.inputs], self._outputs, api_visibility="private",
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], api_visibility="private", queue=False)
        self._gallery.select(_chosen, [self._before, self._after], self._slider, api_visibility="private")
        self._again.connect(self._gallery, self._shown)

    @property
    def _controls(self) -> list[Any]:
        return [self._editor, self._boxes, self._outpaint, self._file, self._objects, self._fit, self._composite]

    @property
    def _outputs(self) -> list[Any]:
        shown = [self._gallery, self._slider, self._status, self._shown, self._before, self._after]
        return [*shown, *self._again.outputs]

    async def _redraw(self, *values: Any) -> AsyncIterator[list[Any]]:
        with telling():
            own = len(self._controls)
            wish = self._sidebar.wish(values[own:])
            asked = await asyncio.to_thread(_asked, wish.model.bundle.config, *values[:own])
            request = wish.request()
            about = {"edited": "PICTURE", AREA: asked.area}
            texts = [{**text, **about} for text in request.texts(wish.model.bundle)]
            rest = [gr.skip()] * (3 + len(self._again.outputs))
            yield [gr.skip(), gr.skip(), waiting(wish.model), *rest]
            (before,) = await self._artist.shelf.put([asked.before])
            edit = asked.canvas.to_square(asked.picture)[None], asked.cells[None]
            states = self._artist.draw(wish.model, request, scales_shown(wish.model, wish.count), edit)
            async with aclosing(states):
                async for state in states:
                    told = progress(state, wish.model)
                    laid = asked.laid(state)
                    files = await self._artist.shelf.put(laid.images, texts if state.final else ())
                    pair = before, files[0]
                    if not state.final:
                        yield [seen(files), seen(pair), told, *rest]
                        continue
                    found = [seen(labelled(files, request)), seen(pair), told, texts, before, files]
                    yield [*found, *self._again.values(texts[0])]


def _chosen(before: str | None, after: list[str], event: gr.SelectData) -> Any:
    if before is None or not after:
        return gr.skip()
    return before, after[min(int(event.index), len(after) - 1)]


def _asked(
    config: Any, editor: Mapping[str, Any] | None, boxes: str, outpaint: bool, file: str | None, objects: str, fit: str,
    composite: bool,
) -> _Asked:  # fmt: skip
    """What the controls say. Raises `UsageError`."""
    background = None if editor is None else editor["background"]
    if background is None:
        raise UsageError("upload a picture first")
    height, width = background.shape[:2]
    if height * width > MAX_PIXELS:
        raise UsageError(f"the picture has more than {MAX_PIXELS // 10**6} million pixels; take a smaller one")
    picture = _flat(background)
    painted = np.zeros((height, width), np.bool_)
    for layer in (editor or {}).get("layers", ()):
        if layer is not None and layer.shape[:2] == (height, width):
            painted |= layer[..., 3] > 0
    lines = [line.strip() for line in boxes.splitlines() if line.strip()]
    wanted = [name.strip() for name in objects.split(",") if name.strip()]
    canvas = Canvas(width, height, config.image_size, fit)
    found = []
    if file is not None:
        found = Detections(Path(file)).find(Path("picture.png"), width, height, objects=wanted)
    mask = painted if painted.any() else None
    if mask is None and not lines and not found:
        raise UsageError("paint over what is to be redrawn, name boxes, or give a file of detections")
    cells = cells_of(
        canvas, config.latent_size, boxes=[parse_box(line, width, height) for line in lines], found=found, mask=mask
    )
    check_area(cells)
    files = {"--mask": None if mask is None else "MASK", "--boxes": None if file is None else "DETECTIONS"}
    area = area_of(box=lines, files=files, objects=wanted, outpaint=outpaint, fit=fit, composite=composite)
    return _Asked(picture, canvas, ~cells if outpaint else cells, composite, area)


def _flat(background: Any) -> Picture:
    """An image of the editor, (h, w, 3 or 4) uint8, on white."""
    from PIL import Image

    from engines.pictures.images import picture_of

    return picture_of(Image.fromarray(background))
