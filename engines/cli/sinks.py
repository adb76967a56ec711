"""What stores the images of a `var-run`: pictures, a grid, arrays and tokens, as the options ask for them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.labels import NONE, ClassNames
from engines.bundle.manifest import Manifest
from engines.cli.common import tell, version
from engines.cli.options import OutputOptions
from engines.cli.outputs import Naming, Target, numbered, numbers_of, resolve
from engines.errors import UsageError
from engines.files.jobs import ImageJob, Item, Made, Sink, TakenError
from engines.files.npz import NpzRows
from engines.files.pictures import Grid, Pictures, holds_item, holds_job
from engines.pictures.grids import SQUARE, Layout
from engines.pictures.images import picture_format
from engines.spec.uniforms import uniforms

NO_CLASS = -1  # of an image that was not drawn from a class


def names_of(manifest: Manifest) -> ClassNames:
    """The classes of a bundle."""
    return ClassNames(manifest.config.transformer.num_classes, manifest.labels)


class ImageSinks:
    """Where the images of one job go. Nothing is opened or locked before `open`."""

    def __init__(
        self,
        options: OutputOptions,
        manifest: Manifest,
        job: ImageJob,
        naming: Naming,
        *,
        side: int | None = None,
        layout: Layout = SQUARE,
        text: Mapping[str, str] | None = None,
    ) -> None:
        """Args: side: the longer one of an image, where that is not the model's; layout: of a grid; text: more than
        the settings for the text inside of pictures.

        Raises `UsageError`.
        """
        self._options, self._config, self._job, self._naming = options, manifest.config, job, naming
        self._names, self._side, self._layout = names_of(manifest), side or manifest.config.image_size, layout
        self._text = {"Software": f"var-run {version()}", **{key: str(value) for key, value in job.settings.items()}}
        self._text |= text or {}
        if "classes" in job.settings:
            self._text["classes"] = json.dumps([self._written(class_id) for class_id in job.settings["classes"]])
        if options.grid and options.npz is None:
            layout.check(len(job.items), self._side)
        target = self._target(1)
        for path in target.paths[:1]:
            picture_format(path, self._side, self._side)
        if options.previews and not target.paths:
            raise UsageError(f"--preview needs a file for each image, and --out {options.out} --grid is one for all")

    def _target(self, number: int) -> Target:
        options = self._options
        if options.npz is not None:
            return Target(())
        return resolve(options.out, self._job, self._names, self._naming, grid=options.grid, number=number)

    def open(self) -> tuple[list[Sink], list[Sequence[Path]]]:
        """The sinks, and the files that there will be, those of a kind together.

        Where something else lies at a place that nobody named, its name gets a number, and a line says so.
        Raises `UsageError`.
        """
        first = self._target(1)
        if self._options.overwrite or not first.numbered:
            return self._open(first)
        taken: TakenError | None = None
        for number in itertools.chain(self._numbers_of_own(first), itertools.count(1)):
            target = self._target(number)
            try:
                opened = self._open(target)
            except TakenError as error:
                taken = taken or error
                continue
            if taken is not None:
                tell(f"{taken.what}: this goes to {target.place}")
            return opened
        raise AssertionError("there are more numbers than files")

    def _numbers_of_own(self, first: Target) -> list[int]:
        """The numbers of the places that hold this very job already."""
        numbers = numbers_of(first.place)
        if first.folder is not None:
            return [number for number in numbers if holds_job(numbered(first.folder, number), self._job)]
        (item,) = self._job.items
        return [number for number in numbers if holds_item(numbered(first.paths[0], number), item)]

    def _open(self, target: Target) -> tuple[list[Sink], list[Sequence[Path]]]:
        options, job = self._options, self._job
        files: list[Sequence[Path]] = []
        with contextlib.ExitStack() as opened:
            sinks: list[Sink] = []

            def add(sink: Sink, *written: Sequence[Path]) -> None:
                opened.callback(sink.close)
                sinks.append(sink)
                files.extend(written)

            if target.paths:
                pictures = Pictures(
                    job,
                    target.paths,
                    self._text_of,
                    folder=target.folder,
                    previews=options.previews,
                    overwrite=options.overwrite,
                )
                add(pictures, target.paths, pictures.previews)
            if target.grid:
                grid = self._grid(target)
                add(grid, [grid.path])
            if options.npz:
                size = self._config.image_size
                arrays = {"arr_0": ((size, size, 3), np.dtype(np.uint8))}
                rows = NpzRows(job, options.npz, arrays, lambda _, made: {"arr_0": made.images}, options.overwrite)
                add(rows, [options.npz])
            if options.save_tokens:
                add(
                    _token_rows(job, options.save_tokens, self._config.num_tokens, options.overwrite),
                    [options.save_tokens],
                )
            opened.pop_all()
        return sinks, files

    def _grid(self, target: Target) -> Grid:
        """The grid; of files that a pattern names, the first number of its name that is free."""
        for number in itertools.count(1):
            try:
                assert target.grid is not None
                return Grid(
                    self._job,
                    numbered(target.grid, number),
                    self._text,
                    files=target.paths,
                    side=self._side,
                    layout=self._layout,
                    overwrite=self._options.overwrite,
                )
            except TakenError:
                if target.numbered or not target.paths:
                    raise
        raise AssertionError("there are more numbers than files")

    def _written(self, class_id: int) -> int | str:
        """A class as `ClassNames.parse` takes it."""
        return NONE if class_id == self._names.unconditional else class_id

    def _text_of(self, item: Item) -> Mapping[str, str]:
        """What the picture of an item says of it."""
        if item.class_id == NO_CLASS:
            return self._text
        label = self._names.label(item.class_id) if item.class_id <= self._names.unconditional else ""
        of_item = {"class": str(self._written(item.class_id)), "label": label, "seed": str(item.seed)}
        of_item |= {name: str(value) for name, value in item.sampling.items()}
        return {key: value for key, value in {**self._text, **of_item}.items() if key not in ("classes", "count")}


def _token_rows(job: ImageJob, path: Path, num_tokens: int, overwrite: bool) -> NpzRows:
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "tokens": ((num_tokens,), np.dtype(np.int64)),
        "uniforms": ((num_tokens,), np.dtype(np.float32)),
        "seeds": ((), np.dtype(np.uint64)),
        "classes": ((), np.dtype(np.int64)),
    }

    def rows(items: Sequence[Item], made: Made) -> dict[str, NDArray[Any]]:
        assert made.tokens is not None, "images without tokens"
        seeds = [item.seed for item in items]
        return {
            "tokens": made.tokens,
            "uniforms": uniforms(seeds, num_tokens),
            "seeds": np.array(seeds, np.uint64),
            "classes": np.array([item.class_id for item in items], np.int64),
        }

    return NpzRows(job, path, arrays, rows, overwrite)
