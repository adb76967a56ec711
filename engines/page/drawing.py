"""The tab that draws: images as they become finer, and how to make each of them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from engines.draw.request import Request
from engines.files.again import command_of, python_of
from engines.page.artist import Artist, State, Step, plain, pressed, scales_shown
from engines.page.sidebar import Sidebar
from engines.serve.models import ServedModel

DRAWS: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
"""How a button that draws is connected: as many at once as press it, since the queue of the model bounds them."""
STOPS: dict[str, Any] = {"api_visibility": "private", "queue": False}
"""How a button that stops another one is connected."""
_BEFORE = "Choose a class on the left, then draw."


class DrawTab:
    """Gallery, buttons, and the settings of the image that is chosen."""

    def __init__(self, artist: Artist, sidebar: Sidebar) -> None:
        """Build the tab; call it where it is to stand."""
        self._artist, self._sidebar = artist, sidebar
        with gr.Row():
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            stop = gr.Button("Stop")
        self._status = gr.Markdown(_BEFORE, elem_id="draw-status")
        self._gallery = gallery("Images", "drawn")
        self._again, self._shown = Again(sidebar), gr.State([])
        outputs = [self._gallery, self._status, self._shown, *self._again.outputs]
        event = draw.click(pressed(self._steps, self._status), sidebar.inputs, outputs, **DRAWS)
        stop.click(lambda: "Stopped.", None, self._status, cancels=[event], **STOPS)
        self._again.connect(self._gallery, self._shown)

    async def _steps(self, *values: Any) -> AsyncGenerator[Step, None]:
        wish = self._sidebar.wish(values)
        request = wish.request()
        texts = request.texts(wish.model.bundle)
        yield {self._status: waiting(wish.model), self._shown: [], **self._again.nothing}
        states = self._artist.draw(wish.model, request, scales_shown(wish.model, wish.count))
        async with aclosing(states):
            async for state in states:
                files = await self._artist.shelf.put(state.images, texts if state.final else ())
                if not state.final:
                    yield {self._gallery: files, self._status: progress(state, wish.model)}
                    continue
                shown = gr.update(value=labelled(files, request), selected_index=None)
                done = {self._gallery: shown, self._status: progress(state, wish.model), self._shown: texts}
                yield done | self._again.values(texts[0])


class Again:
    """How the image that is chosen in a gallery is made again: here, by a command, and in Python."""

    def __init__(self, sidebar: Sidebar) -> None:
        """Build the part; call it where it is to stand."""
        self._sidebar = sidebar
        with gr.Accordion("Make it again", visible=False) as self._part:
            self._button = gr.Button("Same again: take these settings", size="sm")
            # Without a language: the colours of one are too pale to be read by all.
            plain: dict[str, Any] = {"lines": 1, "interactive": False, "buttons": ["copy"]}
            plain |= {"show_line_numbers": False, "wrap_lines": True}
            self._command = gr.Code(label="As a command", **plain)
            self._python = gr.Code(label="In Python", **plain)
        self._place = gr.State(0)

    @property
    def outputs(self) -> list[Any]:
        """The components that `values` and `nothing` fill."""
        return [self._part, self._command, self._python, self._place]

    def values(self, text: Mapping[str, str], place: int = 0) -> Step:
        """Command and Python for what an image of the gallery says of itself, and the part itself, visible."""
        python = python_of(text)
        return {
            self._part: gr.update(visible=True),
            self._command: command_of(text) or "",
            self._python: gr.update(value=python, visible=bool(python)),
            self._place: place,
        }

    @property
    def nothing(self) -> Step:
        """Nothing to make again, while other images come."""
        return {self._part: gr.update(visible=False), self._place: 0}

    def connect(self, shown: Any, texts: Any) -> None:
        """Follow what is chosen in the gallery `shown`, whose images say `texts`."""
        private = {"api_visibility": "private", "show_progress": "hidden"}

        def chosen(texts: Sequence[Mapping[str, str]], event: gr.SelectData) -> Step:
            place = min(int(event.index), len(texts) - 1)
            return self.values(texts[place], place) if texts else self.nothing

        def again(texts: Sequence[Mapping[str, str]], place: int) -> list[Any]:
            if not texts:
                return [gr.skip()] * len(self._sidebar.inputs)
            return self._sidebar.of_text(texts[min(place, len(texts) - 1)])

        shown.select(chosen, texts, self.outputs, **private)
        self._button.click(again, [texts, self._place], self._sidebar.inputs, **private)


def gallery(label: str, name: str, *, visible: bool = True) -> Any:
    """A gallery of drawn images; what is downloaded from it has its settings inside."""
    return gr.Gallery(
        label=label,
        elem_id=name,
        format="png",
        columns=3,
        fit_columns=False,
        object_fit="contain",
        buttons=["download", "download_all", "fullscreen"],
        interactive=False,
        visible=visible,
    )


def seen(value: Any) -> Any:
    """A value for a component that is hidden while it has none."""
    return gr.update(value=value, visible=True)


def labelled(files: Sequence[str], request: Request) -> list[tuple[str, str]]:
    """Finished images for a gallery, with their seeds below."""
    return list(zip(files, [f"seed {seed}" for seed in request.seeds.tolist()], strict=True))


def waiting(model: ServedModel) -> str:
    """What is said until the first scale comes."""
    return f"{plain(model.name)} is being loaded …" if model.joiner is None else "Drawing …"


def progress(state: State, model: ServedModel) -> str:
    """How far the images are."""
    sides = model.bundle.config.patch_nums
    if state.final:
        return f"Done: {len(state.images)} image{'s' * (len(state.images) > 1)}."
    side = sides[state.scale]
    return f"Scale {state.scale + 1} of {len(sides)}: {side} × {side} tokens."
