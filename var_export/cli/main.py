"""The `var-export` command: builds bundles, and looks after them.

Each command is a file of its own, imported when it is called or asked about: `--help` loads none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import click

from engines.cli.common import guarded, version_option

_COMMANDS = {
    "estimate": ("estimate", "Tell whether a model fits a device, and its top speed there."),
    "build": ("build", "Build a bundle from a VAR checkpoint."),
    "sensitivity": ("sensitivity", "Quantise each layer alone and see what it does."),
    "verify": ("verify", "Check a bundle against the PyTorch reference."),
    "compare": ("compare", "Draw the same with two bundles or backends, and compare."),
    "evaluate": ("evaluate", "Tell how good a set of images is, or how far two are apart."),
    "merge": ("merge", "Make one job of the shards that several machines drew."),
    "inspect": ("inspect", "Show what is in a bundle, or how a picture was made."),
    "list": ("list_bundles", "Show the bundles that are here."),
    "bench": ("bench", "Measure latency, throughput and memory."),
    "serve": ("serve", "Serve images over HTTP, as OpenAI's clients ask for them."),
    "triton": ("triton", "Write a model repository for Triton."),
    "doctor": ("doctor", "Look at the environment, and test that it works."),
    "gpu-check": ("gpu_check", "On a machine with a GPU: build, check and time everything."),
}
"""Of each command, in the order in which they are used: its file and function, and a line about it."""

_EPILOG = """\b
Examples:
  var-export build                                   the embedded demo model
  var-export build var_d16.pth --precision fp16
  var-export verify
  var-export doctor
"""


class _Loaded(Mapping[str, click.Command]):
    """The commands by name, each imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        file, line = _COMMANDS[name]
        command: click.Command = getattr(import_module(f"var_export.cli.{file}"), file)
        command.short_help = line  # which the completion of shells shows
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _InOrder(click.Group):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "plan" and not ctx.resilient_parsing:
            ctx.fail("`var-export plan` is called `var-export estimate` now: a plan is TensorRT's engine file")
        return super().get_command(ctx, cmd_name)


@click.group(
    "var-export",
    cls=_InOrder,
    commands=_Loaded(),
    epilog=_EPILOG,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@version_option("var-export")
@click.pass_context
def group(context: click.Context) -> None:
    """Export VAR image models to ONNX bundles, which var-run draws with."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main = guarded(group, "var-export")
