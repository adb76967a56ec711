"""The `var-export` command: builds bundles, and looks after them.

Each command is a file of its own; what it needs beyond click is imported when it runs.
"""

from __future__ import annotations

import click

from engines.cli.common import guarded, version_option
from var_export.cli.bench import bench
from var_export.cli.build import build
from var_export.cli.doctor import doctor
from var_export.cli.estimate import estimate
from var_export.cli.gpu_check import gpu_check
from var_export.cli.inspect import inspect
from var_export.cli.list import list_bundles
from var_export.cli.sensitivity import sensitivity
from var_export.cli.triton import triton
from var_export.cli.verify import verify

_EPILOG = """\b
Examples:
  var-export build                                   the embedded demo model
  var-export build var_d16.pth --precision fp16
  var-export verify
  var-export doctor
"""


class _InOrder(click.Group):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "plan" and not ctx.resilient_parsing:
            ctx.fail("`var-export plan` is called `var-export estimate` now: a plan is TensorRT's engine file")
        return super().get_command(ctx, cmd_name)


@click.group(
    "var-export",
    cls=_InOrder,
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


for _command in (estimate, build, sensitivity, verify, inspect, list_bundles, bench, triton, doctor, gpu_check):
    group.add_command(_command)

main = guarded(group, "var-export")
