"""The inputs that several nodes share: widgets as ComfyUI takes them, with the names of their options.

Those for sampling come from the one table of `engines`, so that a new sampling option has a widget by itself.
"""

from __future__ import annotations

from typing import Any

from engines.spec.choices import FITS
from engines.spec.sampling import OPTIONS, SamplingOption
from engines.spec.uniforms import MAX_SEED

Widget = tuple[Any, dict[str, Any]]
"""One input: a type, or the list of what can be chosen; and the options of its widget."""
Inputs = dict[str, dict[str, Widget]]
"""What `INPUT_TYPES` gives: inputs by name, under `required` and `optional`."""

PIPELINE, TOKENS = "VAR_PIPELINE", "VAR_TOKENS"
RECOMMENDED = -1
"""The value of a widget for sampling that stands for what the bundle recommends."""
MOST_IMAGES = 64
_LARGEST = {"float": 1000.0, "int": 2**31 - 1}
"""The upper end of a widget where the option itself has none."""


def pipeline_input() -> Widget:
    """The input that a loaded bundle is connected to."""
    return (PIPELINE, {"forceInput": True, "tooltip": "From VAR: Load Bundle."})


def class_input(default: str) -> Widget:
    """The widget for the class to draw."""
    tooltip = "A class of the model: its name, its index, or none. var-run classes lists them."
    return ("STRING", {"default": default, "tooltip": tooltip})


def seed_input() -> Widget:
    """The widget for the seed, which ComfyUI may change after each run."""
    tooltip = "Image k has seed S + k: the same seed is the same image, alone or in a batch."
    return ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True, "tooltip": tooltip})


def count_input(tooltip: str) -> Widget:
    """The widget for how many images."""
    return ("INT", {"default": 1, "min": 1, "max": MOST_IMAGES, "step": 1, "tooltip": tooltip})


def fit_input() -> Widget:
    """The list of ways in which a picture of any size becomes the model's square."""
    tooltip = "crop: the largest square in the middle; stretch: all of it, squeezed; pad: its edges repeated."
    return (list(FITS), {"default": FITS[0], "tooltip": tooltip})


def sampling_inputs() -> dict[str, Widget]:
    """A widget for each sampling option of `engines`, all optional. One left out is as the bundle recommends."""
    return {option.name: _sampling_input(option) for option in OPTIONS}


def _sampling_input(option: SamplingOption) -> Widget:
    if option.kind == "bool":
        return ("BOOLEAN", {"default": False, "tooltip": f"{option.meaning}."})
    tooltip = f"{option.meaning}. {RECOMMENDED}: as the bundle recommends."
    kind = int if option.kind == "int" else float
    options: dict[str, Any] = {"default": kind(RECOMMENDED), "min": kind(RECOMMENDED)}
    options |= {"max": kind(min(option.high, _LARGEST[option.kind])), "tooltip": tooltip}
    if option.kind == "int":
        return ("INT", {**options, "step": 1})
    return ("FLOAT", {**options, "step": 0.05, "round": 0.0001})  # without `round`, what is typed goes to the next step


def sampling_of(widgets: dict[str, Any]) -> dict[str, Any]:
    """What the widgets for sampling hold, as keywords of `Pipeline.generate`: None is what the bundle recommends."""
    return {name: None if value == RECOMMENDED else value for name, value in widgets.items()}
