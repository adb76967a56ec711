"""Where the images of a `var-run` go: from --out to one path per image."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bundle.labels import ClassNames
from engines.errors import UsageError
from engines.files.jobs import ImageJob, Item
from engines.pictures.images import FORMATS
from engines.spec.sampling import OPTIONS

FIELDS = ("class", "label", "seed", "index")
"""Of every job; those that are drawn have the sampling options too."""
_WRITTEN = " ".join(FORMATS)
_OTHER_FORMATS = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".npy", ".npz")


@dataclass(frozen=True)
class Target:
    """Files of a job."""

    paths: tuple[Path, ...]
    """One per image, in order; empty where the images go into the grid alone."""
    folder: Path | None = None
    """The folder that belongs to the job."""
    grid: Path | None = None
    numbered: bool = False
    """Whether another number can take its place where something else is there already: nobody named these files."""

    @property
    def place(self) -> Path:
        """The folder, or the one file."""
        return self.folder or self.paths[0]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How files are called where the user does not say."""

    single: str
    """Pattern of the one image of a job."""
    many: str
    """Pattern inside the folder of a job."""
    folder: Path


def class_naming(names: ClassNames, job: ImageJob) -> Naming:
    """Names that carry class, seed and what was swept; in a folder they sort in the order of the images."""
    width = 5 if len(job.all.items) <= 100_000 else 7
    label = "class-{class}" if names.labels is None else "{label}"
    swept = "".join(f"-{name.replace('_', '-')}-{{{name}:g}}" for name in job.items[0].sampling)
    number = "{index:0" + str(width) + "d}"
    return Naming(single="var-{label}-{seed}.png", many=f"{number}-{label}-{{seed}}{swept}.png", folder=Path("out"))


def numbered(path: Path, number: int) -> Path:
    """`out`, `out-2`, `out-3`; of a file, the number comes before the ending."""
    if number == 1:
        return path
    stem, suffix = _stem(path)
    return path.with_name(f"{stem}-{number}{suffix}")


def numbers_of(path: Path) -> list[int]:
    """The numbers under which `numbered` finds something, in order."""
    stem, suffix = map(re.escape, _stem(path))
    form = re.compile(f"{stem}(?:-([1-9][0-9]{{0,8}}))?{suffix}")
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return []
    return sorted(int(found[1] or 1) for name in names if (found := form.fullmatch(name)))


def _stem(path: Path) -> tuple[str, str]:
    """A name without the ending of a picture, and that ending."""
    suffix = path.suffix if path.suffix.lower() in FORMATS else ""
    return path.name.removesuffix(suffix), suffix


def resolve(
    out: str | None, job: ImageJob, names: ClassNames, naming: Naming, *, grid: bool = False, number: int = 1
) -> Target:
    """The files of a job.

    `out` is a file, a folder, a pattern with fields in braces, or None for `naming`. `grid`: also one picture with
    all images; with a file as `out`, that picture alone. `number`: of folders, and of files that nobody named, the
    first one or a later one of that name.

    Raises `UsageError` for several images for one file, an unknown field, another file format.
    """
    render = _renderer(naming.many, job, names)
    if out is None and len(job.all.items) == 1:
        path = numbered(_renderer(naming.single, job, names)(job.items[0]), number)
        return Target((path,), grid=path.with_name(f"{path.stem}-grid.png") if grid else None, numbered=True)
    if out is not None and "{" in out:
        return _pattern(out, job, names, grid)
    if out is not None and not out.endswith("/") and not Path(out).is_dir():
        suffix = Path(out).suffix.lower()
        if suffix in FORMATS:
            return _file(Path(out), len(job.items), grid)
        if suffix in _OTHER_FORMATS:
            raise UsageError(f"--out {out}: images are written as {_WRITTEN} files (arrays: --npz FILE)")
    folder = naming.folder if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: name a file that ends in {_WRITTEN}, or a folder")
    folder = numbered(folder, number)
    paths = tuple(folder / render(item) for item in job.items)
    _check_unique(paths, folder / naming.many)
    return Target(paths, folder, folder / "grid.png" if grid else None, numbered=True)


def _file(path: Path, count: int, grid: bool) -> Target:
    if grid:
        return Target((), grid=path)
    if count > 1:
        raise UsageError(
            f"--out {path} is one file for {count} images: name a folder, or add --grid for one picture of all"
        )
    return Target((path,))


def _pattern(pattern: str, job: ImageJob, names: ClassNames, grid: bool) -> Target:
    if Path(pattern).suffix.lower() not in FORMATS:
        raise UsageError(f"--out {pattern}: a pattern must end in {_WRITTEN}")
    paths = tuple(map(_renderer(pattern, job, names), job.items))
    _check_unique(paths, pattern)
    literal = Path(pattern[: pattern.index("{")] + "x").parent  # the folders before the first field
    return Target(paths, grid=literal / "grid.png" if grid else None)


def _check_unique(paths: Sequence[Path], pattern: str | Path) -> None:
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise UsageError(f"--out {pattern} gives {count} images the name {path}: add {{seed}} or {{index}}")


def _renderer(pattern: str, job: ImageJob, names: ClassNames) -> Callable[[Item], Path]:
    """A function from an item to its path; the pattern is checked once."""
    shared = {option.name: job.settings[option.name] for option in OPTIONS if option.name in job.settings}
    fields = (*FIELDS, *shared)

    def values(item: Item) -> dict[str, Any]:
        label = names.slug(item.class_id) if 0 <= item.class_id <= names.unconditional else "image"
        own = {"class": item.class_id, "label": label, "seed": item.seed, "index": item.number}
        return {**shared, **item.sampling, **own}

    try:
        for _, field, spec, conversion in string.Formatter().parse(pattern):
            if field is not None and (field not in fields or conversion or "{" in (spec or "")):
                raise UsageError(f"--out {pattern}: the fields are {', '.join(f'{{{name}}}' for name in fields)}")
        pattern.format(**values(job.items[0]))
    except UsageError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise UsageError(f"--out {pattern} is no valid pattern: {error}") from error
    return lambda item: Path(pattern.format(**values(item)))
