"""`var-run --edit`: a picture of any size in, a part of it redrawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.cli.actions import draw, job_settings, literal, open_local
from engines.cli.execute import ImageRun
from engines.cli.options import RunOptions
from engines.cli.outputs import Naming, class_naming
from engines.cli.sinks import ImageSinks, names_of
from engines.draw.mask import Mask, check_area, kept_tokens
from engines.draw.pipeline import Pipeline
from engines.editing.boxes import parse_box, read_boxes
from engines.editing.canvas import Canvas
from engines.files.images import load_mask, load_picture
from engines.files.jobs import Item, Made, make_job
from engines.words import printable


def edit(options: RunOptions, path: Path) -> None:
    """Redraw a part of one picture, as each class, as often as asked."""
    opened = open_local(options)
    config, names = opened.manifest.config, names_of(opened.manifest)
    picture = load_picture(path)
    height, width = picture.shape[:2]
    canvas = Canvas(width, height, config.image_size, options.fit)
    redrawn = _redrawn(options, path, canvas, config.latent_size)
    classes = names.parse(options.classes) if options.classes else (config.unconditional_class,)
    settings = {
        **job_settings(options, opened.manifest),
        "edited": printable(path.name),
        "edit_key": _digest(picture, redrawn),
        "fit": options.fit,
        "composite": options.composite,
    }
    job = make_job(classes, seed=options.seed, count=options.count, settings=settings)
    stem = literal(path.stem)
    naming = Naming(single=f"{stem}-edited.png", many=f"{stem}-edited-{class_naming(names).many}", folder=Path("out"))
    side = max(width, height) if options.composite else config.image_size
    sinks = ImageSinks(options, opened.manifest, job, naming, side)
    kept = kept_tokens(config, redrawn[None])

    @cache
    def own_tokens(pipeline: Pipeline) -> NDArray[np.int64]:
        return pipeline.encode(canvas.to_square(picture)[None])

    def produce(pipeline: Pipeline, items: Sequence[Item]) -> Made:
        made = draw(pipeline, items, settings, preview=options.preview, forced=(own_tokens(pipeline), kept))
        if not options.composite:
            return made
        images = np.stack([canvas.lay_over(picture, image, redrawn) for image in made.images])
        return replace(made, images=images)

    execution = ImageRun(options, opened, job, sinks, produce)
    execution.extra["redrawn_cells"] = int(redrawn.sum())
    execution.run(f"{canvas.describe(path.name)}; {redrawn.sum()} of {redrawn.size} cells are redrawn")


def _redrawn(options: RunOptions, path: Path, canvas: Canvas, side: int) -> Mask:
    """The cells (side, side) that the options name, together; the others for --outpaint."""
    width, height = canvas.width, canvas.height
    boxes = [parse_box(text, width, height) for text in options.box]
    if options.boxes is not None:
        boxes += read_boxes(options.boxes, path, width, height, classes=options.box_class, score=options.box_score)
    grid = canvas.grid_of_boxes(boxes, side)
    if options.mask is not None:
        grid |= canvas.grid_of_mask(load_mask(options.mask), side)
    check_area(grid)
    return ~grid if options.outpaint else grid


def _digest(picture: NDArray[np.uint8], redrawn: Mask) -> str:
    """Differs as soon as a pixel or a cell does."""
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(picture.tobytes())
    digest.update(redrawn.tobytes())
    return digest.hexdigest()[:32]
