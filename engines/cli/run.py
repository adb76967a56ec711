"""The `var-run` command: images from a bundle, with nothing but a runtime.

Imports stay light: `--help` must not wait for numpy. What the command does is in `engines.cli.actions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.cli.common import POSITIVE, given, guarded, runtime_options, version_option
from engines.cli.options import RunOptions, sampling_options
from engines.spec.choices import FITS, FORMS
from engines.spec.sampling import OPTIONS

_MODES = ("classes", "tokens", "reconstruct", "edit", "list_classes")
_AREA = ("box", "mask", "boxes")
_EDITING = (*_AREA, "box_class", "box_score", "outpaint", "fit", "composite")
_SAMPLING = ("seed", "count", *(option.name for option in OPTIONS), "form", "preview", "save_tokens")
_CONFLICTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tokens", _SAMPLING),
    ("reconstruct", (*_SAMPLING, "grid", "npz", "batch")),
    (
        "list_classes",
        (*_SAMPLING, "grid", "npz", "batch", "out", "overwrite", "threads", "provider", "backend", "device"),
    ),
    ("edit", ("npz",)),
    ("npz", ("out", "grid", "preview")),
    ("url", ("engine", "form", "tokens", "reconstruct", "edit", "threads", "provider", "backend", "device")),
)
_EPILOG = """\b
Examples:
  var-run --class 88
  var-run --class parrot --seed 7 --count 4 --grid
  var-run --class 0-9,none --out "samples/{class}/{seed}.png"
  var-run --class all --count 50 --npz samples.npz
  var-run --edit cat.jpg --box 0,0.5,1,1 --class fox --count 4
  var-run --class 88 --url triton://localhost:8001
"""


_PATH = click.Path(path_type=Path)


@click.command(
    "var-run",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help="Index, label, range such as 0-9, all, or none (no class); repeatable, or with commas.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Seed of the first image; image k has SEED + k.",
)
@click.option("--count", type=POSITIVE, default=1, help="Images per class.")
@sampling_options
@click.option(
    "--engine",
    type=_PATH,
    metavar="BUNDLE",
    help="Bundle folder. [default: the newest in bundles/, else the embedded demo]",
)
@click.option("--url", metavar="URL", help="Draw on a Triton server, as triton://HOST:8001.")
@click.option("--form", type=click.Choice(FORMS), help="Scale by scale, or all in one graph.")
@click.option("--batch", type=POSITIVE, default=8, help="Images at once, at most.")
@click.option(
    "--out",
    metavar="PATH",
    help="FILE.png, a folder, or a pattern with {class} {label} {seed} {index}. [default: var-LABEL-SEED.png, or out/]",
)
@click.option("--grid", is_flag=True, help="Also one picture with all images; with --out FILE.png, that picture alone.")
@click.option("--preview", is_flag=True, help="Also a strip of the image after each scale.")
@click.option(
    "--npz", type=_PATH, metavar="FILE", help="All images as one array, arr_0, for FID evaluators; no PNG files."
)
@click.option(
    "--save-tokens", type=_PATH, metavar="FILE", help="Also tokens, uniforms, seeds and classes as an .npz file."
)
@click.option("--tokens", type=_PATH, metavar="FILE", help="Decode the tokens of a --save-tokens file.")
@click.option(
    "--reconstruct", type=_PATH, metavar="IMAGE", help="Encode and decode a picture: what the VQ-VAE keeps of it."
)
@click.option("--edit", type=_PATH, metavar="IMAGE", help="Redraw a part of a picture, as --class or as no class.")
@click.option(
    "--box", multiple=True, metavar="X0,Y0,X1,Y1", help="Redraw this part; pixels, or fractions to 1. Repeatable."
)
@click.option("--mask", type=_PATH, metavar="FILE", help="Redraw where this picture is white.")
@click.option("--boxes", type=_PATH, metavar="FILE", help="Redraw what a detector found: JSON of COCO or Ultralytics.")
@click.option("--box-class", multiple=True, metavar="NAME", help="Of --boxes, only this class. Repeatable.")
@click.option("--box-score", type=click.FloatRange(0, 1), metavar="SCORE", help="Of --boxes, only from this score on.")
@click.option("--outpaint", is_flag=True, help="Keep that part and redraw the rest.")
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default=FITS[0],
    help="How a picture becomes square: its middle, squeezed, or with its edges repeated.",
)
@click.option(
    "--composite/--no-composite",
    default=True,
    help="Lay what was redrawn over the original, or write the model's square as it is.",
)
@click.option("--list-classes", is_flag=True, help="Print the classes of the bundle.")
@runtime_options
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout: files, timings, memory, versions, settings."
)
@click.option("--overwrite", is_flag=True, help="Replace existing files, and another job's images in the same folder.")
@version_option("var-run")
@click.pass_context
def run(context: click.Context, /, **values: Any) -> None:
    """Make images with a VAR bundle.

    An image follows from its class, its seed and the settings, whatever else is made with it. A command that
    was interrupted continues when it is given again: images that are there are not made twice.
    """
    options = RunOptions(**values)
    _check_conflicts(context)
    from engines.cli import actions

    if options.list_classes:
        actions.list_classes(options)
    elif options.tokens:
        actions.decode_tokens(options, options.tokens)
    elif options.reconstruct:
        actions.reconstruct(options, options.reconstruct)
    elif options.edit:
        from engines.cli.edit import edit

        edit(options, options.edit)
    else:
        actions.generate(options)


def _check_conflicts(context: click.Context) -> None:
    """Raise `click.UsageError` unless the given options make sense together."""
    flags = given(context)
    modes = [name for name in _MODES if name in flags]
    if "edit" in modes and "classes" in modes:
        modes.remove("classes")  # what to draw there
    if not modes:
        raise click.UsageError(
            "which image? give --class CLASS (--list-classes shows them), --edit, --tokens or --reconstruct"
        )
    if len(modes) > 1:
        raise click.UsageError(f"{flags[modes[0]]} and {flags[modes[1]]} cannot be combined")
    for name, others in _CONFLICTS:
        for other in others:
            if name in flags and other in flags:
                raise click.UsageError(f"{flags[name]} and {flags[other]} cannot be combined")
    stray = [flags[name] for name in _EDITING if name in flags and "edit" not in flags]
    if stray:
        raise click.UsageError(f"{stray[0]} is about a picture to edit: name it with --edit IMAGE")
    if "edit" in flags and not flags.keys() & set(_AREA):
        raise click.UsageError("which part of the picture? give --box X0,Y0,X1,Y1, --mask FILE or --boxes FILE")
    stray = [flags[name] for name in ("box_class", "box_score") if name in flags and "boxes" not in flags]
    if stray:
        raise click.UsageError(f"{stray[0]} chooses from what a detector found: name its file with --boxes FILE")
    if "preview" in flags and context.params["form"] == "fused":
        raise click.UsageError("--preview needs the scales one by one: leave --form fused out")


main = guarded(run, "var-run")
