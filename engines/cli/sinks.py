"""What stores the images of a `var-run`: pictures, a grid, arrays and tokens, as the options ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.labels import ClassNames
from engines.bundle.manifest import Manifest
from engines.cli.common import version
from engines.cli.options import RunOptions
from engines.cli.outputs import Naming, Target, resolve
from engines.errors import UsageError
from engines.files.images import check_grid
from engines.files.jobs import ImageJob, Item, Made, Sink
from engines.files.npz import NpzRows
from engines.files.pictures import Grid, Pictures
from engines.spec.uniforms import uniforms

NO_CLASS = -1  # of an image that was not drawn from a class


def names_of(manifest: Manifest) -> ClassNames:
    """The classes of a bundle."""
    return ClassNames(manifest.config.transformer.num_classes, manifest.labels)


class ImageSinks:
    """Where the images of one job go. Nothing is opened or locked before `open`."""

    def __init__(
        self, options: RunOptions, manifest: Manifest, job: ImageJob, naming: Naming, side: int | None = None
    ) -> None:
        """Args: side: the longer one of an image, where that is not the model's. Raises `UsageError`."""
        self._options, self._config, self._job = options, manifest.config, job
        self._names, self._side = names_of(manifest), side or manifest.config.image_size
        self._target = self._resolved(naming)

    def _resolved(self, naming: Naming) -> Target:
        options = self._options
        if options.npz is not None:
            return Target(())
        if options.grid:
            check_grid(len(self._job.items), self._side)
        target = resolve(options.out, self._job.items, self._names, naming, grid=options.grid)
        if options.preview and not target.paths:
            raise UsageError(f"--preview needs a file for each image, and --out {options.out} --grid is one for all")
        return target

    def open(self) -> tuple[list[Sink], list[Sequence[Path]]]:
        """The sinks, and the files that there will be, those of a kind together. Raises `UsageError`."""
        options, job, target = self._options, self._job, self._target
        # One image: who asks again wants it.
        replacing = {"overwrite": options.overwrite, "restart": len(job.items) == 1}
        shared = {"Software": f"var-run {version()}", **{key: str(value) for key, value in job.settings.items()}}
        sinks: list[Sink] = []
        files: list[Sequence[Path]] = []
        if target.paths:
            text = partial(self._text_of, shared)
            pictures = Pictures(job, target.paths, text, folder=target.folder, previews=options.preview, **replacing)
            sinks.append(pictures)
            files += [target.paths, pictures.previews]
        if target.grid:
            sinks.append(Grid(job, target.grid, shared, files=target.paths, side=self._side, **replacing))
            files.append([target.grid])
        if options.npz:
            size = self._config.image_size
            arrays = {"arr_0": ((size, size, 3), np.dtype(np.uint8))}
            sinks.append(NpzRows(job, options.npz, arrays, lambda _, made: {"arr_0": made.images}, **replacing))
            files.append([options.npz])
        if options.save_tokens:
            sinks.append(_token_rows(job, options.save_tokens, self._config.num_tokens, replacing))
            files.append([options.save_tokens])
        return sinks, files

    def _text_of(self, shared: Mapping[str, str], item: Item) -> Mapping[str, str]:
        """What the PNG file of an item says of it."""
        if item.class_id == NO_CLASS:
            return shared
        label = self._names.label(item.class_id) if item.class_id <= self._names.unconditional else ""
        of_item = {"class": str(item.class_id), "label": label, "seed": str(item.seed)}
        return {key: value for key, value in {**shared, **of_item}.items() if key not in ("classes", "count")}


def _token_rows(job: ImageJob, path: Path, num_tokens: int, replacing: Mapping[str, bool]) -> NpzRows:
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

    return NpzRows(job, path, arrays, rows, **replacing)
