"""Where the images of a `var-run` go: from --out to one path per image."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.labels import ClassNames
from engines.errors import UsageError
from engines.files.jobs import Item

FIELDS = ("class", "label", "seed", "index")
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".npy", ".npz")


@dataclass(frozen=True)
class Target:
    """Files of a job."""

    paths: tuple[Path, ...]
    """One per image, in order; empty where the images go into the grid alone."""
    folder: Path | None = None
    """The folder that belongs to the job."""
    grid: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How files are called where the user does not say."""

    single: str
    """Pattern of the one image of a job."""
    many: str
    """Pattern inside the folder of a job."""
    folder: Path


def class_naming(names: ClassNames) -> Naming:
    """Names that carry class and seed."""
    width = len(str(names.unconditional))
    number = f"{{class:0{width}d}}"
    many = f"{number}-{{seed}}.png" if names.labels is None else f"{number}-{{label}}-{{seed}}.png"
    return Naming(single="var-{label}-{seed}.png", many=many, folder=Path("out"))


def resolve(out: str | None, items: Sequence[Item], names: ClassNames, naming: Naming, *, grid: bool = False) -> Target:
    """The files of a job.

    `out` is a file ending in .png, a folder, a pattern with `FIELDS` in braces, or None for `naming`. `grid`: also one
    picture with all images; with a file as `out`, that picture alone.

    Raises `UsageError` for several images for one file, an unknown field, another file format.
    """
    if out is None and len(items) == 1:
        path = _renderer(naming.single, names)(items[0])
        return Target((path,), grid=path.with_name(f"{path.stem}-grid.png") if grid else None)
    if out is not None and "{" in out:
        return _pattern(out, items, names, grid)
    if out is not None and not out.endswith("/") and not Path(out).is_dir():
        suffix = Path(out).suffix.lower()
        if suffix == ".png":
            return _file(Path(out), len(items), grid)
        if suffix in _OTHER_FORMATS:
            raise UsageError(f"--out {out}: images are written as .png files (arrays: --npz FILE)")
    folder = naming.folder if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: name a file that ends in .png, or a folder")
    render = _renderer(naming.many, names)
    paths = tuple(folder / render(item) for item in items)
    _check_unique(paths, folder / naming.many)
    return Target(paths, folder, folder / "grid.png" if grid else None)


def _file(path: Path, count: int, grid: bool) -> Target:
    if grid:
        return Target((), grid=path)
    if count > 1:
        raise UsageError(
            f"--out {path} is one file for {count} images: name a folder, or add --grid for one picture of all"
        )
    return Target((path,))


def _pattern(pattern: str, items: Sequence[Item], names: ClassNames, grid: bool) -> Target:
    if not pattern.lower().endswith(".png"):
        raise UsageError(f"--out {pattern}: a pattern must end in .png")
    paths = tuple(map(_renderer(pattern, names), items))
    _check_unique(paths, pattern)
    literal = Path(pattern[: pattern.index("{")] + "x").parent  # the folders before the first field
    return Target(paths, grid=literal / "grid.png" if grid else None)


def _check_unique(paths: Sequence[Path], pattern: str | Path) -> None:
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise UsageError(f"--out {pattern} gives {count} images the name {path}: add {{seed}} or {{index}}")


def _renderer(pattern: str, names: ClassNames) -> Callable[[Item], Path]:
    """A function from an item to its path; the pattern is checked once."""
    try:
        for _, field, spec, conversion in string.Formatter().parse(pattern):
            if field is not None and (field not in FIELDS or conversion or "{" in (spec or "")):
                raise UsageError(f"--out {pattern}: the fields are {', '.join(f'{{{name}}}' for name in FIELDS)}")
        pattern.format(**{"class": 0, "label": "", "seed": 0, "index": 0})
    except UsageError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise UsageError(f"--out {pattern} is no valid pattern: {error}") from error

    def render(item: Item) -> Path:
        label = names.slug(item.class_id) if 0 <= item.class_id <= names.unconditional else "image"
        return Path(pattern.format(**{"class": item.class_id, "label": label, "seed": item.seed, "index": item.index}))

    return render
