"""The `var-run` command: images from a bundle, with nothing but a runtime.

Imports stay light: `--help` must not wait for numpy. What the command does is in `engines.cli.actions`.
"""

from __future__ import annotations

import click

from engines.cli.common import given, guarded, option_group, version_option
from engines.cli.options import RunOptions
from engines.spec.sampling import OPTIONS

_MODES = ("classes", "tokens", "reconstruct", "edit", "list_classes")
_AREA = ("box", "mask", "boxes")
_EDITING = (*_AREA, "box_class", "box_score", "outpaint", "fit", "composite")
_SAMPLING = ("seed", "count", *(option.name for option in OPTIONS), "form", "preview", "save_tokens")
_RUNTIME = ("threads", "provider", "backend", "device", "check")
_CONFLICTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tokens", _SAMPLING),
    ("reconstruct", (*_SAMPLING, "grid", "npz", "batch")),
    ("list_classes", (*_SAMPLING, "grid", "npz", "batch", "out", "overwrite", *_RUNTIME)),
    ("edit", ("npz",)),
    ("npz", ("out", "grid", "preview")),
    ("url", ("engine", "form", "tokens", "reconstruct", "edit", *_RUNTIME)),
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


@click.command(
    "var-run",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@option_group("options", RunOptions)
@version_option("var-run")
@click.pass_context
def run(context: click.Context, /, options: RunOptions) -> None:
    """Make images with a VAR bundle.

    An image follows from its class, its seed and the settings, whatever else is made with it. A command that
    was interrupted continues when it is given again: images that are there are not made twice.
    """
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
