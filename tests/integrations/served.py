"""A command line of `var-export serve` in a file that no test starts, held against the command itself."""

from __future__ import annotations

import click

from var_export.cli.main import group

PROGRAM = "/opt/var-export/bin/var-export"
SERVE = group.commands["serve"]


def settings_of(words: list[str], key_file: str) -> dict:
    """What the command makes of its words. `key_file`: stands for the file with the key, which has to be there.

    Raises `click.UsageError` for an option that it does not know, or a value that an option does not take.
    """
    program, command, *options = words
    assert (program, command) == (PROGRAM, "serve")
    place = options.index("--api-key-file") + 1
    options[place] = key_file
    with click.Context(group):
        return SERVE.make_context("serve", options).params
