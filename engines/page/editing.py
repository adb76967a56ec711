"""The tab that redraws a part of a picture: painted, in boxes, or what a detector found; or all but that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from engines.editing.boxes import parse_box
from engines.editing.canvas import Canvas
from engines.editing.detections import Detections
from engines.editing.found import Found, cells_of
from engines.editing.mask import Mask, check_area
from engines.errors import UsageError
from engines.files.again import AREA, area_of
from engines.foreign import read_bytes, reading
from engines.page.artist import Artist, State, Step, pressed, scales_shown
from engines.page.drawing import DRAWS, STOPS, Again, gallery, labelled, progress, seen, waiting
from engines.page.sidebar import Sidebar
from engines.pictures.images import Picture
from engines.serve.wire import uploaded
from engines.spec.choices import FITS
from engines.spec.config import ModelConfig

LARGE = 4_000_000
"""Pixels of a picture from which on no scales are shown: the model's square is laid over it each time."""
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
    """The area, as options of a command line."""

    def square(self) -> Picture:
        """The picture as the model sees it."""
        return self.canvas.to_square(self.picture)

    def before(self) -> Picture:
        """What the results stand beside: the picture, or the square that the model sees."""
        return self.picture if self.composite else self.square()

    def laid(self, state: State) -> list[Picture]:
        """The images laid over the picture, where that is wanted."""
        if not self.composite:
            return state.images
        return [self.canvas.lay_over(self.picture, image, self.cells) for image in state.images]


class EditTab:
    """Editor, areas, results, and a slider between before and after."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        self._reading = asyncio.Lock()
        brush = gr.Brush(colors=[_PAINT], default_color=_PAINT, color_mode="fixed")
        editor = gr.ImageEditor(label="Picture", type="filepath", sources=["upload", "clipboard"], transforms=[],
                                layers=False, brush=brush, format="png", height=420,
                                elem_id="editor", buttons=[])  # fmt: skip
        with gr.Row():
            boxes = gr.Textbox("", label="Boxes", lines=2, placeholder="0.25,0.25,0.75,0.75", elem_id="boxes",
                               info="x0,y0,x1,y1 on each line: pixels, or fractions to 1")  # fmt: skip
            outpaint = gr.Checkbox(label="Outpaint", info="keep that part, and redraw the rest")
        with gr.Accordion("What a detector found, and how the picture fits", open=False):
            file = gr.File(label="File of COCO, Ultralytics or YOLO", file_types=[".json", ".txt"])
            objects = gr.Textbox("", label="Only these objects", placeholder="cat, dog")
            fit = gr.Radio(list(_FITS.items()), value=FITS[0], label="A picture becomes a square by")
            composite = gr.Checkbox(True, label="Composite", info="lay what was redrawn over the original")
        self._own = [editor, boxes, outpaint, file, objects, fit, composite]
        with gr.Row():
            redraw = gr.Button("Redraw", variant="primary", elem_id="redraw")
            stop = gr.Button("Stop")
        self._status = gr.Markdown(_BEFORE, elem_id="edit-status")
        self._slider = gr.ImageSlider(
            label="Before and after", format="png", buttons=["fullscreen"], height=420, visible=False
        )
        self._gallery = gallery("Redrawn", "redrawn", visible=False)
        self._again, self._shown = Again(sidebar), gr.State([])
        self._before, self._after = gr.State(None), gr.State([])
        shown = [self._gallery, self._slider, self._status, self._shown, self._before, self._after]
        event = redraw.click(
            pressed(self._steps, self._status),
            [*self._own, *sidebar.inputs],
            [*shown, *self._again.outputs],
            preprocess=False,  # gradio would decode whatever was sent, of any size, before it is looked at
            **DRAWS,
        )
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], **STOPS)
        self._gallery.select(_chosen, [self._before, self._after], self._slider, api_visibility="private")
        self._again.connect(self._gallery, self._shown)

    async def _steps(self, *values: Any) -> AsyncGenerator[Step, None]:
        own, rest = values[: len(self._own)], values[len(self._own) :]
        wish = self._sidebar.wish(rest)
        config, shelf = wish.model.bundle.config, self._artist.shelf
        yield {self._status: waiting(wish.model), self._shown: [], self._before: None, self._after: [],
               **self._again.nothing}  # fmt: skip
        async with self._reading:  # one after another: a large picture takes half a gigabyte
            asked = await asyncio.to_thread(_asked, config, shelf.own, *own)
        request = wish.request()
        about = {"edited": "PICTURE", AREA: asked.area}
        texts = [{**text, **about} for text in request.texts(wish.model.bundle)]
        square = await asyncio.to_thread(asked.square)
        (before,) = await shelf.put([await asyncio.to_thread(asked.before)])
        scales = scales_shown(wish.model, wish.count) if asked.picture.size // 3 < LARGE else ()
        states = self._artist.draw(wish.model, request, scales, (square[None], asked.cells[None]))
        async with aclosing(states):
            async for state in states:
                laid = await asyncio.to_thread(asked.laid, state)
                files = await shelf.put(laid, texts if state.final else ())
                step = {self._status: progress(state, wish.model), self._slider: seen((before, files[0]))}
                if not state.final:
                    yield step | {self._gallery: seen(files)}
                    continue
                shown = {self._gallery: seen(labelled(files, request)), self._shown: texts}
                yield step | shown | {self._before: before, self._after: files} | self._again.values(texts[0])


def _chosen(before: str | None, after: Sequence[str], event: gr.SelectData) -> Any:
    if before is None or not after:
        return gr.skip()
    return before, after[min(int(event.index), len(after) - 1)]


def _asked(config: ModelConfig, own: Any, editor: Mapping[str, Any] | None, boxes: str | None, outpaint: bool,
           file: Any, objects: str | None, fit: str, composite: bool) -> _Asked:  # fmt: skip
    """What the controls say, as a browser sends it; `own` gives a file that was uploaded. Raises `UsageError`."""
    background = (editor or {}).get("background")
    if background is None:
        raise UsageError("upload a picture first")
    picture, _ = uploaded(_content(own(background)), "the picture")
    height, width = picture.shape[:2]
    mask = _painted(own, editor or {}, (height, width))
    lines = [line.strip() for line in (boxes or "").splitlines() if line.strip()]
    wanted = [name.strip() for name in (objects or "").split(",") if name.strip()] if file is not None else []
    canvas = Canvas(width, height, config.image_size, fit if fit in FITS else FITS[0])
    found = [] if file is None else _found(own(file), width, height, wanted)
    if mask is None and not lines and not found:
        raise UsageError("paint over what is to be redrawn, name boxes, or give a file of detections")
    areas = [parse_box(line, width, height) for line in lines]
    cells = cells_of(canvas, config.latent_size, boxes=areas, found=found, mask=mask)
    check_area(cells)
    files = {"--mask": None if mask is None else "MASK", "--boxes": None if file is None else "DETECTIONS"}
    area = area_of(
        box=lines, files=files, objects=wanted, outpaint=bool(outpaint), fit=canvas.fit, composite=bool(composite)
    )
    return _Asked(picture, canvas, ~cells if outpaint else cells, bool(composite), area)


def _found(file: Path, width: int, height: int, wanted: Sequence[str]) -> list[Found]:
    """What a file of detections has. Raises `UsageError`, which calls the file as its user does."""
    try:
        return Detections(file).find(None, width, height, objects=wanted)
    except UsageError as error:
        raise UsageError(str(error).replace(str(file), file.name)) from error


def _painted(own: Any, editor: Mapping[str, Any], size: tuple[int, int]) -> Mask | None:
    """Where something was painted, bool (h, w); None where nothing was."""
    painted = np.zeros(size, np.bool_)
    for layer in editor.get("layers") or ():
        if layer is None:
            continue
        pixels, clear = uploaded(_content(own(layer)), "what was painted")
        if pixels.shape[:2] == size:
            painted |= np.ones(size, np.bool_) if clear is None else ~clear
    return painted if painted.any() else None


def _content(file: Path) -> bytes:
    with reading(file, "picture"):
        return read_bytes(file)
