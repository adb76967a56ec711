"""What the commands share: one border for errors, tables, JSON, versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from engines.errors import VarExportError
from engines.spec.choices import PROVIDERS

EXIT_INTERRUPTED = 130
PROVIDER_HELP = f"Of ONNX Runtime: {', '.join(PROVIDERS)}."


def guarded(command: click.Command, name: str) -> Callable[[Sequence[str] | None], int]:
    """The entry point of a command: runs it and returns its exit code.

    What a user can correct becomes `Error: <one line>` on stderr, with the exit code of the error (2 for
    parse errors); Ctrl-C one line and 130. A bug keeps its traceback. `command_line` tells what was typed.
    """

    def main(args: Sequence[str] | None = None) -> int:
        typed = [name, *(sys.argv[1:] if args is None else args)]
        try:
            code = command.main(typed[1:], prog_name=name, standalone_mode=False, obj=typed)
        except click.Abort as abort:  # click's form of KeyboardInterrupt
            click.echo(one_line(abort.__cause__) or "interrupted", err=True)
            return EXIT_INTERRUPTED
        except click.ClickException as error:
            click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
            return error.exit_code
        except VarExportError as error:
            click.echo(f"Error: {one_line(error)}", err=True)
            return error.exit_code
        return code if isinstance(code, int) else 0

    return main


def command_line(context: click.Context) -> list[str]:
    """The program and its arguments, as they were typed."""
    typed: list[str] = context.find_root().obj
    return typed


def one_line(error: object) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error or "").split())


def print_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
    """Print plain text columns on stdout; a column of numbers is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    for line in [list(headers), *cells]:
        columns = zip(line, widths, numeric, strict=True)
        click.echo("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in columns).rstrip())


def json_out(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def version() -> str:
    """The installed version of this project."""
    from importlib import metadata

    try:
        return metadata.version("var-export")
    except metadata.PackageNotFoundError:  # run from a copied folder
        return "unknown"


def peak_memory() -> int:
    """The most memory that this process held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
