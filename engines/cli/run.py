"""The `var-run` command: images from a bundle, with nothing but a runtime.

Imports stay light: `--help` must not wait for numpy. What the commands do is in `engines.cli.actions` and
`engines.cli.edit`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from engines.cli.common import given, guarded, option_group, version_option
from engines.cli.options import PATH, AreaOptions, DrawOptions, FleetOptions, OutputOptions, SourceOptions, with_preset

_AREA = ("box", "mask", "boxes", "detect")
_PREVIEW = ("preview", "preview_as")
_HERE = ("bundle", "form", "threads", "provider", "backend", "device", "precision_hint", "check", "refine")
_REFINE = ("refine", "refine_from", "sequential")
_CONFLICTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("npz", ("out", "grid", *_PREVIEW)),
    ("url", _HERE),
    ("shard", ("grid",)),
    ("ray", ("url", "refine")),
    ("mixed", ("backend",)),
    ("write_at", ("shard", "save_tokens", "out", "grid", *_PREVIEW)),
)
_FLEET = ("workers", "write_at", "mixed")
_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
}
_EPILOG = """\b
Examples:
  var-run parrot
  var-run --class pizza --seed 9 --count 4 --grid
  var-run --class 0-9,none -o "samples/{class}/{seed}.png"
  var-run frog --cfg 1,2,4 --top-p 0.4,0.9
  var-run --class all --count 50 --npz samples.npz
  var-run edit cat.jpg --box 0,0.5,1,1 --class fox --count 4
  var-run --class 88 --url triton://localhost:8001
  var-run --class all --count 50 --npz samples.npz --ray 10.0.0.5:6379
  var-run --ui
"""


class DrawsByDefault(click.Group):
    """A group whose first word may be left out: it draws."""

    default = "draw"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if not args:
            raise click.UsageError("which image? give a class, as var-run parrot (var-run classes shows them)", ctx)
        own = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
        for place, word in enumerate(args):
            if word.startswith("-") and word in self.commands:  # a command, though it looks like an option
                return super().parse_args(ctx, ["--", word, *args[:place], *args[place + 1 :]])
        if args[0] not in self.commands and args[0] not in own:
            if not args[0].startswith("-"):
                self._check_mistyped(ctx, args)
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _check_mistyped(self, ctx: click.Context, args: list[str]) -> None:
        """Raise `click.UsageError` where a file follows on what is nearly a command: it would be taken for a class."""
        files = [word for word in args[1:2] if "." in word or "/" in word]
        near = [name for name in self.commands if name.startswith(args[0]) and len(args[0]) > 1]
        near += difflib.get_close_matches(args[0], self.commands, n=1)
        if files and near:
            raise click.UsageError(f"no command is called {args[0]!r}: did you mean {near[0]}?", ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of what it does by default, and the other commands."""
        drawing = self.commands[self.default]
        with click.Context(drawing, info_name=ctx.info_name, **_SETTINGS) as context:
            drawing.format_usage(context, formatter)
            drawing.format_help_text(context, formatter)
            drawing.format_options(context, formatter)
            rows = [(name, each.get_short_help_str(90)) for name, each in self.commands.items() if each is not drawing]
            with formatter.section("Commands"):
                formatter.write_dl(rows)
            self.format_epilog(ctx, formatter)


@click.group("var-run", cls=DrawsByDefault, epilog=_EPILOG, context_settings=_SETTINGS)
@version_option("var-run")
def run() -> None:
    """Make images with a VAR bundle."""


@run.command("draw")
@click.argument("names", nargs=-1, metavar="[CLASS]...")
@option_group("request", DrawOptions)
@option_group("output", OutputOptions)
@option_group("source", SourceOptions)
@option_group("fleet", FleetOptions)
@click.pass_context
def draw(
    context: click.Context,
    /,
    names: tuple[str, ...],
    request: DrawOptions,
    output: OutputOptions,
    source: SourceOptions,
    fleet: FleetOptions,
) -> None:
    """Make images with a VAR bundle.

    An image follows from its class, its seed and the settings, whatever else is made with it. A command that
    was interrupted continues when it is given again: images that are there are not made twice.
    """
    _check_conflicts(context)
    request, classes = with_preset(request, (*names, *request.classes), given(context))
    if not classes:
        raise click.UsageError("which image? give a class, as var-run parrot (var-run classes shows them)")
    from engines.cli import actions

    actions.generate(classes, request, output, source, fleet)


@run.command("edit")
@click.argument("pictures", type=PATH, nargs=-1, required=True, metavar="PICTURE...")
@option_group("area", AreaOptions)
@option_group(
    "request",
    DrawOptions,
    without=("preset", "order", "shard"),
    classes="What to draw there, as for drawing. [default: no class]",
)
@option_group("output", OutputOptions, without=("npz",))
@option_group("source", SourceOptions)
@click.pass_context
def edit(context: click.Context, /, **values: Any) -> None:
    """Redraw a part of a picture, of any size; of several pictures, or of those in a folder.

    The part is given by boxes, masks or what a detector found; the rest of the picture stays. Of several pictures,
    the results go to a folder, edited/ or --out, where {name} stands for the picture's.
    """
    _check_conflicts(context)
    flags = given(context)
    if not flags.keys() & set(_AREA):
        raise click.UsageError(
            "which part of the picture? give --box X0,Y0,X1,Y1, --mask FILE or --boxes FILE, or --detect MODEL.onnx"
        )
    stray = [flags[name] for name in ("objects", "score") if name in flags and not flags.keys() & {"boxes", "detect"}]
    if stray:
        raise click.UsageError(f"{stray[0]} chooses from what was found: add --boxes FILE or --detect MODEL.onnx")
    from engines.cli.edit import edit

    edit(**values)


@run.command("reconstruct")
@click.argument("picture", type=PATH)
@option_group("output", OutputOptions, without=("grid", *_PREVIEW, "npz", "save_tokens"))
@option_group("source", SourceOptions, without=("batch", *_REFINE))
@click.pass_context
def reconstruct(context: click.Context, /, picture: Path, output: OutputOptions, source: SourceOptions) -> None:
    """Encode and decode a picture: what the VQ-VAE keeps of it."""
    _check_conflicts(context)
    from engines.cli import actions

    actions.reconstruct(picture, output, source)


@run.command("decode")
@click.argument("tokens", type=PATH)
@option_group("output", OutputOptions, without=(*_PREVIEW, "save_tokens"))
@option_group("source", SourceOptions, without=("url", *_REFINE))
@click.pass_context
def decode(context: click.Context, /, tokens: Path, output: OutputOptions, source: SourceOptions) -> None:
    """Turn the tokens of a --save-tokens file into images."""
    _check_conflicts(context)
    from engines.cli import actions

    actions.decode_tokens(tokens, output, source)


@run.command("classes")
@option_group("source", SourceOptions, without=("batch", "runtime", "check", *_REFINE))
@click.pass_context
def classes(context: click.Context, /, source: SourceOptions) -> None:
    """Print the classes of a bundle."""
    _check_conflicts(context)
    from engines.cli import actions

    actions.list_classes(source)


@run.command("--ui")
@option_group("source", SourceOptions, without=("url", "as_json", *_REFINE))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0 is any that is free.")
@click.option("--browser/--no-browser", default=True, help="Show it in this machine's browser.")
def ui(source: SourceOptions, port: int, browser: bool) -> None:
    """Draw, edit and explore on a page in a browser (as var-export serve has)."""
    from engines.cli.serving import LOCAL, start

    models = {"max_batch": source.batch, "check": source.check, "runtime": vars(source.runtime)}
    bundles = [] if source.bundle is None else [str(source.bundle)]
    start(bundles, port=port, browser=browser, models=models, settings={"hosts": LOCAL})


def _check_conflicts(context: click.Context) -> None:
    """Raise `click.UsageError` unless the given options make sense together."""
    flags = given(context)
    for name, others in _CONFLICTS:
        for other in others:
            if name in flags and other in flags:
                raise click.UsageError(f"{flags[name]} and {flags[other]} cannot be combined")
    stray = [flags[name] for name in _FLEET if name in flags and "ray" not in flags]
    if stray:
        raise click.UsageError(f"{stray[0]} needs --ray")
    if "write_at" in flags and "npz" not in flags:
        raise click.UsageError("--write-at needs --npz: the file that the shards of the workers become")
    missing = {"refine_from"} if "refine" in flags else {"refine"} if flags.keys() & set(_REFINE) else set()
    for name in missing - flags.keys():
        first = next(flags[each] for each in _REFINE if each in flags)
        raise click.UsageError(f"{first} needs --{name.replace('_', '-')}")
    if "refine" in flags and context.params.get("form") == "fused":
        raise click.UsageError("--refine needs the scales one by one: leave --form fused out")
    previews = [flags[name] for name in _PREVIEW if name in flags]
    if previews and context.params.get("form") == "fused":
        raise click.UsageError(f"{previews[0]} needs the scales one by one: leave --form fused out")


main = guarded(run, "var-run")
