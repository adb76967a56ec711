"""What `var-run` was asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engines.cli.common import POSITIVE, NamedPath, Runtime, check_option, filled_by, option, runtime_options
from engines.spec.choices import FITS, FORMS
from engines.spec.sampling import OPTIONS, SamplingOptions

_PATH = NamedPath(path_type=Path)
_TYPES = {"float": float, "int": int}


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each of `engines.spec.sampling`; what was given of them arrives as `sampling`."""

    def with_sampling(*args: Any, **values: Any) -> Any:
        taken = {each.name: values.pop(each.name) for each in OPTIONS}
        sampling: Any = {name: value for name, value in taken.items() if value is not None}
        return command(*args, sampling=sampling, **values)

    decorated: Any = functools.wraps(command)(with_sampling)
    for each in reversed(OPTIONS):
        meaning = f"{each.meaning[0].upper()}{each.meaning[1:]}."
        if each.kind == "bool":
            decorated = click.option(each.flag, is_flag=True, default=None, help=meaning)(decorated)
        else:
            decorated = click.option(each.flag, type=_TYPES[each.kind], help=meaning)(decorated)
    result: Callable[..., Any] = decorated
    return result


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `var-run`, parsed; None where the user left the choice to the bundle."""

    classes: tuple[str, ...] = option(
        "--class",
        multiple=True,
        metavar="CLASS",
        help="Index, label, range such as 0-9, all, or none (no class); repeatable, or with commas.",
    )
    seed: int = option(
        type=click.IntRange(min=0),
        default=0,
        help="Seed of the first image; image k has SEED + k.",
    )
    count: int = option(type=POSITIVE, default=1, help="Images per class.")
    sampling: SamplingOptions = filled_by(sampling_options)
    """What was given of the sampling options."""
    engine: Path | None = option(
        type=_PATH,
        metavar="BUNDLE",
        help="Bundle folder. [default: the newest in bundles/, else the embedded demo]",
    )
    url: str | None = option(metavar="URL", help="Draw on a Triton server, as triton://HOST:8001.")
    form: str | None = option(type=click.Choice(FORMS), help="Scale by scale, or all in one graph.")
    batch: int = option(type=POSITIVE, default=8, help="Images at once, at most.")
    out: str | None = option(
        type=NamedPath(path_type=str),
        metavar="PATH",
        help="FILE.png, a folder, or a pattern with {class} {label} {seed} {index}. "
        "[default: var-LABEL-SEED.png, or out/]",
    )
    grid: bool = option(is_flag=True, help="Also one picture with all images; with --out FILE.png, that picture alone.")
    preview: bool = option(is_flag=True, help="Also a strip of the image after each scale.")
    npz: Path | None = option(
        type=_PATH, metavar="FILE", help="All images as one array, arr_0, for FID evaluators; no PNG files."
    )
    save_tokens: Path | None = option(
        type=_PATH, metavar="FILE", help="Also tokens, uniforms, seeds and classes as an .npz file."
    )
    tokens: Path | None = option(type=_PATH, metavar="FILE", help="Decode the tokens of a --save-tokens file.")
    reconstruct: Path | None = option(
        type=_PATH, metavar="IMAGE", help="Encode and decode a picture: what the VQ-VAE keeps of it."
    )
    edit: Path | None = option(
        type=_PATH, metavar="IMAGE", help="Redraw a part of a picture, as --class or as no class."
    )
    box: tuple[str, ...] = option(
        multiple=True, metavar="X0,Y0,X1,Y1", help="Redraw this part; pixels, or fractions to 1. Repeatable."
    )
    mask: Path | None = option(type=_PATH, metavar="FILE", help="Redraw where this picture is white.")
    boxes: Path | None = option(
        type=_PATH, metavar="FILE", help="Redraw what a detector found: JSON of COCO or Ultralytics."
    )
    box_class: tuple[str, ...] = option(multiple=True, metavar="NAME", help="Of --boxes, only this class. Repeatable.")
    box_score: float | None = option(
        type=click.FloatRange(0, 1), metavar="SCORE", help="Of --boxes, only from this score on."
    )
    outpaint: bool = option(is_flag=True, help="Keep that part and redraw the rest.")
    fit: str = option(
        type=click.Choice(FITS),
        default=FITS[0],
        help="How a picture becomes square: its middle, squeezed, or with its edges repeated.",
    )
    composite: bool = option(
        "--composite/--no-composite",
        default=True,
        help="Lay what was redrawn over the original, or write the model's square as it is.",
    )
    list_classes: bool = option(is_flag=True, help="Print the classes of the bundle.")
    runtime: Runtime = filled_by(runtime_options)
    check: str = filled_by(check_option)
    """One of `engines.spec.choices.CHECKS`."""
    as_json: bool = option(
        "--json",
        is_flag=True,
        help="One JSON document on stdout: files, timings, memory, versions, settings.",
    )
    overwrite: bool = option(is_flag=True, help="Replace existing files, and another job's images in the same folder.")
