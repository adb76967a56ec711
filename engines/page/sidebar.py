"""What is asked for on the left of the page, for all tabs: model, class, seed, and how to draw."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from engines.bundle.labels import ClassNames
from engines.bundle.manifest import Manifest
from engines.draw.request import Request, make_request
from engines.errors import UsageError
from engines.page.artist import Artist, telling
from engines.pictures.images import Picture
from engines.serve.models import ServedModel
from engines.serve.wire import MAX_IMAGES
from engines.spec.sampling import OPTIONS, SamplingOption

MAX_SEED = 2**53 - 1
"""The largest whole number that a browser keeps."""
KEPT_PICTURES = 500
"""Pictures of classes that are kept in memory."""
FIRST_CLASS = 88
"""A parrot of the demo, and a macaw of ImageNet: what the README draws first."""
PICTURES = 12
"""The most classes that a search shows with pictures."""
_NEW_SEEDS = 2**31
_TITLES = {"cfg": "Guidance", "top_k": "Top-k", "top_p": "Top-p", "cfg_scales": "Guided scales"}
_STEPS = {"cfg": 0.1, "temperature": 0.05, "top_p": 0.01}


@dataclass(frozen=True)
class Wish:
    """What one press of a button asks for."""

    model: ServedModel
    index: int
    """The class."""
    seed: int
    count: int
    sampling: Mapping[str, Any]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the images: of image k, the first one plus k."""
        return [(self.seed + k) % (MAX_SEED + 1) for k in range(self.count)]

    def request(
        self, model: ServedModel | None = None, *, seeds: Sequence[int] | None = None, **sampling: Any
    ) -> Request:
        """The images, of this model or another.

        `seeds`: in place of its own; `sampling`: options in place of its own, one value for all images or one for each.
        Raises `UsageError` where the model has no such class, or not these settings.
        """
        bundle = (model or self.model).bundle
        return make_request(bundle, self.index, seeds=seeds or self.seeds, **{**self.sampling, **sampling})


class Sidebar:
    """The controls of a wish, in a column of the page."""

    def __init__(self, artist: Artist) -> None:
        """Build them; call it where they are to stand."""
        self._artist = artist
        self._pictures: dict[tuple[str, int], Picture] = {}
        first = artist.models.find(None)
        self.model = gr.Dropdown(artist.names, value=first.name, label="Model", visible=len(artist.names) > 1)
        self.index = gr.Dropdown(label="Class", **_classes(first.bundle), interactive=True)
        with gr.Accordion("Find a class by its picture", open=False):
            self._query = gr.Textbox(label="A part of its name", placeholder="cat", submit_btn="Search")
            self._found = gr.Gallery(
                label="Classes found",
                columns=4,
                fit_columns=False,
                object_fit="contain",
                preview=False,
                allow_preview=False,
                format="png",
                buttons=[],
            )
            self._indexes = gr.State([])
        with gr.Row(equal_height=True):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, scale=3, min_width=90)
            dice = gr.Button("New seed", scale=2, min_width=100)
        self.count = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Images")
        with gr.Accordion("How to draw", open=False):
            self.options = [_control(option, first.bundle) for option in OPTIONS]
        self._connect(dice)

    @property
    def inputs(self) -> list[Any]:
        """The controls whose values `wish` takes, in its order."""
        return [self.model, self.index, self.seed, self.count, *self.options]

    def wish(self, values: Sequence[Any]) -> Wish:
        """What the controls say. Raises `UsageError`."""
        name, index, seed, count, *options = values
        model = self._artist.models.find(name)
        if index is None or seed is None:
            raise UsageError(f"choose a {'class' if index is None else 'seed'} first")
        sampling = {option.name: value for option, value in zip(OPTIONS, options, strict=True) if value is not None}
        return Wish(model, int(index), int(seed), int(count), sampling)

    def of_text(self, text: Mapping[str, str]) -> list[Any]:
        """Values of `inputs` for what an image says of itself, for the model that drew it where that is here."""
        made = [model for model in self._artist.models if model.bundle.build_key == text.get("build_key")]
        model = made[0] if made else self._artist.models.find(None)
        bundle, index = model.bundle, text["class"]
        number = bundle.config.unconditional_class if index == "none" else int(index)
        options = [
            gr.update(**_range(option, bundle) | {"value": _value(option, text[option.name])}) for option in OPTIONS
        ]
        chosen = gr.update(**_classes(bundle) | {"value": number})
        return [model.name, chosen, int(text["seed"]), 1, *options]

    def _connect(self, dice: Any) -> None:
        private = {"api_visibility": "private", "show_progress": "hidden"}
        dice.click(lambda: secrets.randbelow(_NEW_SEEDS), outputs=self.seed, **private)
        self.model.input(self._fitted, self.model, [self.index, *self.options], **private)
        searched = {"inputs": [self.model, self._query], "outputs": [self._found, self._indexes]}
        self._query.submit(self._search, **searched, api_visibility="private")
        self._found.select(self._chosen, self._indexes, self.index, **private)

    def _fitted(self, name: str) -> list[Any]:
        """The controls as another model needs them."""
        with telling():
            bundle = self._artist.models.find(name).bundle
            controls = [gr.update(**_range(option, bundle)) for option in OPTIONS]
            return [gr.update(**_classes(bundle)), *controls]

    async def _search(self, name: str, query: str) -> tuple[list[tuple[str, str]], list[int]]:
        """Classes whose names hold `query`, each with a picture that its model draws, once."""
        with telling():
            model = self._artist.models.find(name)
            names = ClassNames(model.bundle.config.transformer.num_classes, model.bundle.labels)
            found = names.holding(query)[:PICTURES]
            if not found:
                raise UsageError(f"no class is called so: {query.strip()[:40]}")
            missing = [index for index in found if (name, index) not in self._pictures]
            if missing:
                request = make_request(model.bundle, missing, seeds=[0] * len(missing))
                drawn = await self._artist.finished(model, request)
                self._pictures |= {(name, index): image for index, image in zip(missing, drawn.images, strict=True)}
            files = await self._artist.shelf.put([self._pictures[name, index] for index in found])
            while len(self._pictures) > KEPT_PICTURES:  # the oldest first
                del self._pictures[next(iter(self._pictures))]
            return list(zip(files, map(names.short_label, found), strict=True)), found

    @staticmethod
    def _chosen(indexes: list[int], chosen: gr.SelectData) -> int:
        return indexes[int(chosen.index)]


def _classes(bundle: Manifest) -> dict[str, Any]:
    """The choices of a model, and one to begin with."""
    config = bundle.config
    names = ClassNames(config.transformer.num_classes, bundle.labels)
    choices = [(names.label(index), index) for index in (*range(names.num_classes), names.unconditional)]
    return {"choices": choices, "value": min(FIRST_CLASS, names.num_classes - 1)}


def _control(option: SamplingOption, bundle: Manifest) -> Any:
    title = _TITLES.get(option.name, option.name.capitalize())
    shown = {"label": title, "info": option.meaning, **_range(option, bundle)}
    return gr.Checkbox(**shown) if option.kind == "bool" else gr.Slider(**shown)


def _range(option: SamplingOption, bundle: Manifest) -> dict[str, Any]:
    """What a control of an option may be set to for a model, and what the model recommends."""
    recommended = getattr(bundle.sampling.fitted(bundle.max_top_k), option.name)
    if option.kind == "bool":
        return {"value": recommended, "visible": bundle.smooth}
    low, high = option.usual or (option.low, option.high)
    most = {"top_k": bundle.max_top_k, "cfg_scales": bundle.config.num_scales}
    high = most.get(option.name, high)
    return {
        "minimum": min(low, recommended),
        "maximum": max(high, recommended),
        "step": _STEPS.get(option.name, 1),
        "value": recommended,
    }


def _value(option: SamplingOption, text: str) -> Any:
    if option.kind == "bool":
        return text == "True"
    value = float(text)
    return int(value) if option.kind == "int" else float(np.format_float_positional(np.float32(value)))
