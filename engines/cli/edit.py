"""`var-run edit`: a picture of any size in, a part of it redrawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.labels import ClassNames
from engines.cli.actions import (
    job_arguments,
    job_of,
    job_settings,
    layout_of,
    literal,
    opening,
    seed_remark,
    with_grid_of_sweep,
)
from engines.cli.common import json_out, tell
from engines.cli.execute import ImageRun, Opened
from engines.cli.options import AreaOptions, DrawOptions, OutputOptions, SourceOptions
from engines.cli.outputs import Naming, class_naming
from engines.cli.sinks import ImageSinks, names_of
from engines.draw.results import ImageSource, Stop
from engines.editing.boxes import parse_box
from engines.editing.canvas import Canvas
from engines.editing.detections import Detections
from engines.editing.detectors import Detector
from engines.editing.found import Found, NothingFoundError, cells_of
from engines.editing.mask import Mask, check_area
from engines.errors import UsageError
from engines.files.again import AREA, area_of
from engines.files.drawing import draw_items
from engines.files.jobs import Item, Made
from engines.foreign import pictures_in
from engines.pictures.images import load_mask, load_picture
from engines.words import counted, printable

_NAME = "{name}"


@dataclass(frozen=True)
class _Edits:
    """What all pictures of one command share."""

    area: AreaOptions
    request: DrawOptions
    output: OutputOptions
    source: SourceOptions
    opened: Opened[ImageSource]
    names: ClassNames
    classes: Sequence[int]
    settings: dict[str, Any]
    detections: Detections | None
    detector: Detector | None


def edit(
    pictures: Sequence[Path], area: AreaOptions, request: DrawOptions, output: OutputOptions, source: SourceOptions
) -> None:
    """Redraw a part of each picture, or of those in folders, as each class, as often as asked."""
    files = [file for path in pictures for file in (pictures_in(path) if path.is_dir() else [path])]
    several = len(files) > 1 or pictures[0].is_dir()
    if several:
        _check_places(output, len(files))
        same = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
        if output.overwrite and same:
            raise UsageError(f"--overwrite would keep one of the pictures called {same[0]} alone: rename the others")
    detections = None if area.boxes is None else Detections(area.boxes)
    detector = None
    if area.detect is not None:
        detector = Detector(area.detect, source.runtime.threads)
        if area.boxes is None:
            detector.check_names(area.objects)
    with opening(source, request.form) as opened:
        names = names_of(opened.manifest)
        classes = names.parse(request.classes) if request.classes else (names.unconditional,)
        settings = job_settings(request, source, opened.manifest)
        shared = _Edits(area, request, output, source, opened, names, classes, settings, detections, detector)
        if several:
            _edit_several(files, shared)
            return
        execution, remark = _prepared(files[0], shared)
        execution.run(remark, seed_remark(request.seed))


def _edit_several(files: Sequence[Path], shared: _Edits) -> None:
    """A job for each picture. One that cannot be edited is told of, and keeps no other from it."""
    documents: list[dict[str, Any]] = []
    refused: list[UsageError] = []
    loaded: list[ImageSource] = []
    seed: str | None = seed_remark(shared.request.seed)

    def load() -> ImageSource:
        if not loaded:
            loaded.append(shared.opened.load())
        return loaded[0]

    keeping = replace(shared, opened=replace(shared.opened, load=load, kept=True))
    try:
        for index, file in enumerate(files):
            try:
                execution, remark = _prepared(file, keeping, (index, len(files)))
                document = execution.make(remark, seed)
            except UsageError as error:
                tell(f"{file.name} is left out: {error}")
                refused.append(error)
                continue
            seed = None
            documents += [] if document is None else [document]
    finally:
        for pipeline in loaded:
            pipeline.close()
    if shared.source.as_json:
        json_out({"pictures": documents, "left_out": [str(error) for error in refused]})
    if len(refused) == len(files):
        raise UsageError(f"none of the {len(files)} pictures could be edited; the first: {refused[0]}")
    wrong = [error for error in refused if not isinstance(error, NothingFoundError)]
    if wrong:
        raise UsageError(f"{len(wrong)} of the {len(files)} pictures could not be edited; the first: {wrong[0]}")


def _check_places(output: OutputOptions, count: int) -> None:
    """Raise `UsageError` where one file would be for several pictures."""
    for flag, place in (("--out", output.out), ("--save-tokens", output.save_tokens)):
        if place is None or _NAME in str(place):
            continue
        folder = ", or name a folder" if flag == "--out" else ""
        if not folder or not (Path(place).suffix == "" or str(place).endswith("/") or Path(place).is_dir()):
            raise UsageError(f"{flag} {place} is for {count} pictures: put {_NAME} into it{folder}")


def _prepared(file: Path, shared: _Edits, place: tuple[int, int] | None = None) -> tuple[ImageRun[ImageSource], str]:
    """The job for one picture, and what is done to it. `place`: which of how many it is, where there are several."""
    area, request, opened, names = shared.area, shared.request, shared.opened, shared.names
    config = opened.manifest.config
    pixels = load_picture(file)
    height, width = pixels.shape[:2]
    canvas = Canvas(width, height, config.image_size, area.fit)
    redrawn, found = _redrawn(shared, file, pixels, canvas, place or (0, 1))
    settings = {
        **shared.settings,
        "edited": printable(file.name),
        "edit_key": _digest(pixels, redrawn),
        "fit": area.fit,
        "composite": area.composite,
    }
    job = job_of(job_arguments(shared.classes, request, settings), request)
    many = class_naming(names, job).many
    layout = layout_of(job, request.sampling.sweep, names)
    output, naming = _places(shared.output, file.stem, many, several=place is not None)
    side = max(width, height) if area.composite else config.image_size
    output = with_grid_of_sweep(output, layout, job, side)
    sinks = ImageSinks(output, opened.manifest, job, naming, side=side, layout=layout, text={AREA: _spelled(area)})

    kept: dict[str, Any] = {}

    def produce(pipeline: ImageSource, items: Sequence[Item], stop: Stop | None) -> Made:
        if not kept:
            kept.update(pipeline.keeping(canvas.to_square(pixels)[None], redrawn[None]))
        made = draw_items(pipeline, items, settings, preview=output.previews is not None, stop=stop, **kept)
        if not area.composite:
            return made
        images = np.stack([canvas.lay_over(pixels, image, redrawn) for image in made.images])
        return replace(made, images=images)

    execution = ImageRun(shared.source, opened, job, sinks, produce)
    execution.extra["redrawn_cells"] = int(redrawn.sum())
    execution.extra["objects"] = [{"name": each.name, "score": each.score, "box": list(each.box)} for each in found]
    objects = f"{counted(len(found), 'object')}, " if found else ""
    return execution, f"{canvas.describe(file.name)}; {objects}{redrawn.sum()} of {redrawn.size} cells are redrawn"


def _places(output: OutputOptions, stem: str, many: str, *, several: bool) -> tuple[OutputOptions, Naming]:
    """Where the images of one picture go: its name stands for `_NAME`, and of several each is called as it was."""
    out, tokens = output.out, output.save_tokens
    if out is not None and _NAME in out:
        pattern = "{" in out.replace(_NAME, "")
        out = out.replace(_NAME, literal(stem) if pattern else stem)
    if tokens is not None:
        tokens = Path(str(tokens).replace(_NAME, stem))
    if not several:
        naming = Naming(single=f"{literal(stem)}-edited.png", many=many, folder=Path(f"{stem}-edited"))
    else:
        folder = Path("edited")
        if out is not None and out == output.out and "{" not in out:
            folder, out = Path(out), None
        naming = Naming(single=f"{literal(str(folder / stem))}.png", many=many, folder=folder / stem)
    return replace(output, out=out, save_tokens=tokens), naming


def _redrawn(
    shared: _Edits, file: Path, pixels: NDArray[np.uint8], canvas: Canvas, place: tuple[int, int]
) -> tuple[Mask, list[Found]]:
    """The cells (S, S) that the options name, together; the others for --outpaint. And the objects among them."""
    area, (height, width) = shared.area, pixels.shape[:2]
    boxes = [parse_box(text, width, height) for text in area.box]
    found: list[Found] = []
    if shared.detections is not None:
        found = shared.detections.find(file, width, height, objects=area.objects, score=area.score, place=place)
    if shared.detector is not None:
        found += shared.detector.find(pixels, file.name, objects=area.objects, score=area.score)
    mask = None if area.mask is None else load_mask(_mask_of(area.mask, file))
    grid = cells_of(
        canvas, shared.opened.manifest.config.latent_size, boxes=boxes, found=found, mask=mask, grow=area.grow
    )
    check_area(grid)
    return ~grid if area.outpaint else grid, found


def _mask_of(place: Path, file: Path) -> Path:
    """The mask of a picture: a file, or the one of its name in a folder."""
    if not place.is_dir():
        return place
    for mask in pictures_in(place):
        if mask.stem == file.stem:
            return mask
    raise UsageError(f"{place} has no mask that is called as {file.name}")


def _spelled(area: AreaOptions) -> str:
    """The area as options of a command line."""
    files = {"--mask": area.mask, "--boxes": area.boxes, "--detect": area.detect}
    return area_of(
        box=area.box,
        files=files,
        objects=area.objects,
        score=area.score,
        grow=area.grow,
        outpaint=area.outpaint,
        fit=area.fit,
        composite=area.composite,
    )


def _digest(picture: NDArray[np.uint8], redrawn: Mask) -> str:
    """Differs as soon as a pixel or a cell does."""
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(picture.tobytes())
    digest.update(redrawn.tobytes())
    return digest.hexdigest()[:32]
