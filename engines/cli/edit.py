"""`var-run edit`: a picture of any size in, a part of it redrawn."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.cli.actions import draw, job_of, job_settings, layout_of, literal, open_local, seed_remark
from engines.cli.again import AREA
from engines.cli.execute import ImageRun
from engines.cli.options import AreaOptions, DrawOptions, OutputOptions, SourceOptions
from engines.cli.outputs import Naming, class_naming
from engines.cli.sinks import ImageSinks, names_of
from engines.draw.mask import Mask, check_area, kept_tokens
from engines.draw.pipeline import Pipeline
from engines.editing.boxes import parse_box
from engines.editing.canvas import Canvas
from engines.editing.detections import read_found
from engines.editing.found import Found, cells_of
from engines.files.images import load_mask, load_picture
from engines.files.jobs import Item, Made
from engines.spec.choices import FITS
from engines.words import printable


def edit(picture: Path, area: AreaOptions, request: DrawOptions, output: OutputOptions, source: SourceOptions) -> None:
    """Redraw a part of one picture, as each class, as often as asked."""
    opened = open_local(source, request.form)
    config, names = opened.manifest.config, names_of(opened.manifest)
    pixels = load_picture(picture)
    height, width = pixels.shape[:2]
    canvas = Canvas(width, height, config.image_size, area.fit)
    redrawn = _redrawn(area, picture, canvas, config.latent_size)
    classes = names.parse(request.classes) if request.classes else (config.unconditional_class,)
    settings = {
        **job_settings(request, source, opened.manifest),
        "edited": printable(picture.name),
        "edit_key": _digest(pixels, redrawn),
        "fit": area.fit,
        "composite": area.composite,
    }
    job = job_of(classes, request, settings)
    stem = literal(picture.stem)
    many = class_naming(names, job).many
    naming = Naming(single=f"{stem}-edited.png", many=many, folder=Path(f"{picture.stem}-edited"))
    side = max(width, height) if area.composite else config.image_size
    layout = layout_of(job, request.sampling.sweep, names)
    output = replace(output, grid=output.grid or layout.above != ())
    sinks = ImageSinks(output, opened.manifest, job, naming, side=side, layout=layout, text={AREA: _spelled(area)})
    kept = kept_tokens(config, redrawn[None])

    @cache
    def own_tokens(pipeline: Pipeline) -> NDArray[np.int64]:
        return pipeline.encode(canvas.to_square(pixels)[None])

    def produce(pipeline: Pipeline, items: Sequence[Item]) -> Made:
        made = draw(pipeline, items, settings, preview=output.previews is not None, forced=(own_tokens(pipeline), kept))
        if not area.composite:
            return made
        images = np.stack([canvas.lay_over(pixels, image, redrawn) for image in made.images])
        return replace(made, images=images)

    execution = ImageRun(source, opened, job, sinks, produce)
    execution.extra["redrawn_cells"] = int(redrawn.sum())
    what = f"{canvas.describe(picture.name)}; {redrawn.sum()} of {redrawn.size} cells are redrawn"
    execution.run(what, seed_remark(request.seed))


def _redrawn(area: AreaOptions, picture: Path, canvas: Canvas, side: int) -> Mask:
    """The cells (side, side) that the options name, together; the others for --outpaint."""
    width, height = canvas.width, canvas.height
    boxes = [parse_box(text, width, height) for text in area.box]
    found: list[Found] = []
    if area.boxes is not None:
        found = read_found(area.boxes, picture, width, height, objects=area.objects, score=area.score)
    mask = None if area.mask is None else load_mask(area.mask)
    grid = cells_of(canvas, side, boxes=boxes, found=found, mask=mask, grow=area.grow)
    check_area(grid)
    return ~grid if area.outpaint else grid


def _spelled(area: AreaOptions) -> str:
    """The area as options of a command line."""
    words = [word for box in area.box for word in ("--box", box)]
    for flag, file in (("--mask", area.mask), ("--boxes", area.boxes)):
        words += [] if file is None else [flag, str(file)]
    words += [word for name in area.objects for word in ("--object", name)]
    words += [] if area.score is None else ["--score", f"{area.score:g}"]
    words += ["--grow", f"{area.grow:g}"] if area.grow else []
    words += ["--outpaint"] if area.outpaint else []
    words += [] if area.fit == FITS[0] else ["--fit", area.fit]
    return printable(shlex.join([*words, *([] if area.composite else ["--no-composite"])]))


def _digest(picture: NDArray[np.uint8], redrawn: Mask) -> str:
    """Differs as soon as a pixel or a cell does."""
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(picture.tobytes())
    digest.update(redrawn.tobytes())
    return digest.hexdigest()[:32]
