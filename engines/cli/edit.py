"""`var-run --edit`: a picture of any size in, a part of it redrawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.cli.actions import SAMPLING, job_settings, literal, names_of, open_bundle, sinks_of, target_of
from engines.cli.common import tell
from engines.cli.execute import Execution
from engines.cli.options import Options
from engines.cli.outputs import Naming, class_naming
from engines.draw.mask import Mask, check_area, kept_tokens
from engines.editing.boxes import parse_box, read_boxes
from engines.editing.canvas import Canvas
from engines.files.images import load_mask, load_picture
from engines.files.jobs import Item, Made, Sink, make_job


def edit(options: Options, path: Path) -> None:
    """Redraw a part of one picture, as each class, as often as asked."""
    bundle = open_bundle(options)
    config, names = bundle.config, names_of(bundle)
    picture = load_picture(path)
    height, width = picture.shape[:2]
    canvas = Canvas(width, height, config.image_size, options.fit)
    redrawn = _redrawn(options, path, canvas, config.latent_size)
    classes = names.parse(options.classes) if options.classes else (config.unconditional_class,)
    settings = {
        **job_settings(options, bundle),
        "edited": path.name,
        "edit_key": _digest(picture, redrawn),
        "fit": options.fit,
        "composite": options.composite,
    }
    job = make_job(classes, seed=options.seed, count=options.count, settings=settings)
    stem = literal(path.stem)
    naming = Naming(single=f"{stem}-edited.png", many=f"{stem}-edited-{class_naming(names).many}", folder=Path("out"))
    side = max(width, height) if options.composite else config.image_size
    target = target_of(options, bundle, job, naming, side)
    sampling = {name: settings[name] for name in SAMPLING}
    kept = kept_tokens(config, redrawn[None])

    @cache
    def own_tokens() -> NDArray[np.int64]:
        return execution.pipeline.encode(canvas.to_square(picture)[None])

    def finished(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not options.composite:
            return images
        return np.stack([canvas.lay_over(picture, image, redrawn) for image in images])

    def produce(items: Sequence[Item]) -> Made:
        of_items, seeds = [item.class_id for item in items], [item.seed for item in items]
        forced = own_tokens(), kept
        if not options.preview:
            result = execution.pipeline.generate(of_items, seeds=seeds, forced=forced, **sampling)
            execution.add_timings(result.timings)
            return Made(finished(result.images), result.tokens)
        previews = list(execution.pipeline.stream(of_items, seeds=seeds, forced=forced, **sampling))
        return Made(finished(previews[-1].images), previews[-1].tokens, [preview.images for preview in previews])

    def sinks() -> tuple[list[Sink], list[Sequence[Path]]]:
        made = sinks_of(options, bundle, job, target, names, side)
        tell(f"{canvas.describe(path.name)}; {redrawn.sum()} of {redrawn.size} cells are redrawn")
        return made

    execution = Execution(options, bundle, job, produce)
    execution.extra["redrawn_cells"] = int(redrawn.sum())
    execution.run(sinks)


def _redrawn(options: Options, path: Path, canvas: Canvas, side: int) -> Mask:
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
