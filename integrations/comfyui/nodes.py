"""The nodes, written to ComfyUI's contract: class attributes, `INPUT_TYPES`, and a function that returns a tuple.

Each is thin over `engines`: `host` watches scales, `tensors` converts, `pipelines` keeps what is loaded. Errors are
those of `engines`, one line each, which ComfyUI shows in a dialog.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engines import UsageError, VarExportError
from engines.spec.choices import BACKENDS, FITS, PROVIDERS, STEPWISE

from .host import ScaleWatch, require_not_interrupted
from .pipelines import ChosenPipeline, check_path, folder_of, mark_of, offered_bundles
from .tensors import area_of, image_of, pixels_of, tensor_of, tokens_of
from .widgets import (
    MOST_IMAGES,
    PIPELINE,
    TOKENS,
    Inputs,
    Widget,
    class_input,
    count_input,
    fit_input,
    pipeline_input,
    sampling_inputs,
    sampling_of,
    seed_input,
)

if TYPE_CHECKING:
    import torch

    from engines import Pipeline

CATEGORY = "var-export"
AUTO = "auto"
"""The backend of the list that stands for the choice of `Pipeline.load`."""
_MOST_THREADS = 256


class LoadBundleNode:
    """Opens a bundle. Its output stays the same, and what is loaded stays loaded, until the bundle's folder changes."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """A bundle of the list, or any other by its path; and what computes."""
        bundles = list(offered_bundles())
        return {
            "required": {
                "bundle": (
                    bundles,
                    {"default": bundles[0], "tooltip": "Bundles in models/var_export, and the demo of the package."},
                ),
            },
            "optional": {
                "path": (
                    "STRING",
                    {"default": "", "tooltip": "In place of the list: a bundle's folder, or hf://OWNER/REPO/FOLDER."},
                ),
                "backend": (
                    [AUTO, *BACKENDS],
                    {"default": AUTO, "tooltip": "What runs the graphs; auto takes plans that fit this machine."},
                ),
                "provider": (
                    list(PROVIDERS),
                    {"default": PROVIDERS[0], "tooltip": "What ONNX Runtime computes on."},
                ),
                "threads": (
                    "INT",
                    {"default": 0, "min": 0, "max": _MOST_THREADS, "step": 1, "tooltip": "On a CPU; 0: all cores."},
                ),
                "max_batch": (
                    "INT",
                    {"default": 8, "min": 1, "max": MOST_IMAGES, "step": 1, "tooltip": "Images at once, at most."},
                ),
            },
        }

    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Open a bundle of var-export. It stays loaded between runs, until its folder changes."

    @classmethod
    def VALIDATE_INPUTS(cls, path: str | None = "") -> bool | str:
        """Whether a path that was typed is a bundle, before anything runs; else the line that says what is wrong."""
        try:
            if path and path.strip():  # None where a node gives it, which has not run yet
                check_path(path.strip())
        except VarExportError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, bundle: str | None = None, path: str | None = "", **_: Any) -> str:
        """A digest of the files as they lie on disk; the empty text where a node that has not run gives the name."""
        if bundle is None or path is None:
            return ""
        try:
            return mark_of(folder_of(bundle, path))
        except VarExportError as error:
            return str(error)

    def load(
        self,
        bundle: str,
        path: str = "",
        backend: str = AUTO,
        provider: str = PROVIDERS[0],
        threads: int = 0,
        max_batch: int = 8,
    ) -> tuple[ChosenPipeline]:
        """Load it now, so that what is wrong with it is said here. Raises `VarExportError`."""
        folder = folder_of(bundle, path)
        chosen = ChosenPipeline(
            path=folder,
            mark=mark_of(folder),
            backend=None if backend == AUTO else backend,
            provider=provider,
            threads=threads or None,
            max_batch=max_batch,
        )
        with chosen.lent():
            return (chosen,)


class DrawNode:
    """Draws images of one class, a seed each."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The class, the seed of the first image, how many, and how they are sampled."""
        return {
            "required": {
                "pipeline": pipeline_input(),
                "class_name": class_input("0"),
                "seed": seed_input(),
                "count": count_input("Images to draw."),
            },
            "optional": sampling_inputs(),
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    FUNCTION = "draw"
    CATEGORY = CATEGORY
    DESCRIPTION = "Draw images of a class with a VAR model."

    def draw(
        self, pipeline: ChosenPipeline, class_name: str, seed: int, count: int, **sampling: Any
    ) -> tuple[torch.Tensor]:
        """IMAGE of `count` images. Raises `VarExportError`, and ComfyUI's own exception where Cancel was pressed."""
        with pipeline.lent() as loaded:
            watch = ScaleWatch(_steps(loaded, count))
            seeds = range(seed, seed + count)
            result = loaded.generate(class_name, seeds=seeds, stop=watch, **sampling_of(sampling))
            watch.finish()
        return (image_of(result.images),)


class PreviewScalesNode:
    """Draws one image and gives it as it stands after each scale, coarse to fine."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """As for drawing, of one image."""
        return {
            "required": {"pipeline": pipeline_input(), "class_name": class_input("0"), "seed": seed_input()},
            "optional": sampling_inputs(),
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("scales",)
    FUNCTION = "preview"
    CATEGORY = CATEGORY
    DESCRIPTION = "One image as a batch: as it stands after each scale. The last is what VAR: Draw gives."

    def preview(self, pipeline: ChosenPipeline, class_name: str, seed: int, **sampling: Any) -> tuple[torch.Tensor]:
        """IMAGE of as many images as the model has scales. Raises as `DrawNode.draw`, and for a fused bundle."""
        with pipeline.lent() as loaded:
            if loaded.form != STEPWISE:
                raise UsageError(f"{pipeline.path} draws all scales at once: build it with --form both for previews")
            watch = ScaleWatch(_steps(loaded, 1))
            shown = loaded.stream(class_name, seeds=[seed], stop=watch, **sampling_of(sampling))
            images = np.concatenate([preview.images for preview in shown])
            watch.finish()
        return (image_of(images),)


class EditNode:
    """Redraws the masked part of pictures; the rest keeps its tokens."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The pictures, where to redraw them and as what; one picture may be redrawn several times."""
        composite = "On: the pictures in their size, with what was redrawn laid over. Off: the model's squares."
        return {
            "required": {
                "pipeline": pipeline_input(),
                "image": ("IMAGE", {"tooltip": "One picture or several, of any size."}),
                "mask": ("MASK", {"tooltip": "1 is redrawn, 0 is kept; of the picture's size, or of its proportions."}),
                "class_name": class_input("none"),
                "seed": seed_input(),
                "count": count_input("Variants of one picture; 1 where there are several."),
            },
            "optional": {
                "fit": fit_input(),
                "composite": ("BOOLEAN", {"default": True, "tooltip": composite}),
                **sampling_inputs(),
            },
        }

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    FUNCTION = "edit"
    CATEGORY = CATEGORY
    DESCRIPTION = "Redraw the masked part of a picture, as a class of the model or, with none, as what fits in."

    def edit(
        self,
        pipeline: ChosenPipeline,
        image: torch.Tensor,
        mask: torch.Tensor,
        class_name: str,
        seed: int,
        count: int,
        fit: str = FITS[0],
        composite: bool = True,
        **sampling: Any,
    ) -> tuple[torch.Tensor]:
        """IMAGE of as many images as there are pictures, masks or variants. Raises as `DrawNode.draw`."""
        pictures, areas = pixels_of(image), area_of(mask)
        seeds = seed if count == 1 else range(seed, seed + count)
        with pipeline.lent() as loaded:
            watch = ScaleWatch(_steps(loaded, max(len(pictures), len(areas), count)))
            options: dict[str, Any] = {"fit": fit, "composite": composite, **sampling_of(sampling)}
            result = loaded.edit(pictures, areas, class_name, seeds=seeds, stop=watch, **options)
            watch.finish()
        return (image_of(result.images),)


class EncodeImageNode:
    """Turns pictures into the model's tokens."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The pictures, and how they become squares."""
        image: Widget = ("IMAGE", {"tooltip": "One picture or several, of any size."})
        return {"required": {"pipeline": pipeline_input(), "image": image}, "optional": {"fit": fit_input()}}

    RETURN_TYPES = (TOKENS,)
    RETURN_NAMES = ("tokens",)
    FUNCTION = "encode"
    CATEGORY = CATEGORY
    DESCRIPTION = "Turn pictures into tokens: the token maps of all scales, coarse to fine."

    def encode(self, pipeline: ChosenPipeline, image: torch.Tensor, fit: str = FITS[0]) -> tuple[torch.Tensor]:
        """VAR_TOKENS int64 (B, T). Raises `VarExportError`."""
        require_not_interrupted()
        with pipeline.lent() as loaded:
            return (tensor_of(loaded.encode(pixels_of(image), fit=fit)),)


class DecodeTokensNode:
    """Turns tokens of the same model into images."""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The tokens, as `EncodeImageNode` gives them."""
        tokens: Widget = (TOKENS, {"forceInput": True, "tooltip": "From VAR: Encode, with the same model."})
        return {"required": {"pipeline": pipeline_input(), "tokens": tokens}}

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    FUNCTION = "decode"
    CATEGORY = CATEGORY
    DESCRIPTION = "Turn tokens into images of the model's size."

    def decode(self, pipeline: ChosenPipeline, tokens: torch.Tensor) -> tuple[torch.Tensor]:
        """IMAGE of as many images as there are rows of tokens. Raises `VarExportError`."""
        require_not_interrupted()
        with pipeline.lent() as loaded:
            return (image_of(loaded.decode(tokens_of(tokens))),)


def _steps(loaded: Pipeline, images: int) -> int:
    """How often a drawing asks its `stop`: before each scale of each batch; in the fused form, before each batch."""
    batches = math.ceil(images / loaded.max_batch)
    return batches * (loaded.config.num_scales if loaded.form == STEPWISE else 1)
