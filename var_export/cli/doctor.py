"""`var-export doctor`: what this machine and environment can do, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from engines.cli.common import json_option, json_out, print_facts, print_table, show, threads_option, version
from engines.errors import CheckFailedError
from engines.words import mebibytes

if TYPE_CHECKING:
    from engines.host.environment import Diagnosis, SelfTest


@click.command()
@click.option("--no-run", is_flag=True, help="Leave out the self-test.")
@threads_option
@json_option
def doctor(no_run: bool, threads: int | None, as_json: bool) -> None:
    """Look at the environment, say what is missing, and draw a demo image to see that it works.

    The exit code is 1 where the self-test fails.
    """
    from engines.bundle import bundle
    from engines.host.environment import diagnose, self_test

    found = diagnose(bundle.DEMO_BUNDLE)
    demo = found.demo
    test = self_test(demo.path, threads=threads) if found.can_draw and not no_run else None
    if as_json:
        tested = None if test is None else asdict(test) | {"failures": list(test.failures)}
        json_out({"version": version(), **found.to_dict(), "self_test": tested})
    else:
        _print(found)
        show(f"self-test:  {_outcome(test, no_run)}")
    if demo.present and not demo.verified:
        raise CheckFailedError(f"the embedded demo bundle is damaged: {demo.problem}")
    if test is not None and not test.passed:
        raise CheckFailedError(f"the self-test failed: {'; '.join(test.failures)}")


def _print(found: Diagnosis) -> None:
    here, demo = found.machine, found.demo
    print_facts(
        {
            "var-export": f"{version()}, Python {here.python}",
            "machine": f"{here} ({mebibytes(here.available)} available)",
            "providers": ", ".join(found.providers) or "none",
            "arithmetic": found.arithmetic or "not known without ONNX Runtime",
        }
    )
    show()
    print_table([(name, kept or "not installed") for name, kept in found.packages.items()], ("package", "version"))
    show()
    rows = [
        (c.what, "yes" if c.usable else "no", c.reason + (f"; {c.fix}" if c.fix else "")) for c in found.capabilities
    ]
    print_table(rows, ("can it", "", "because"))
    show()
    for warning in found.warnings:
        show(f"warning:    {warning}")
    show(f"demo:       {f'verified, {demo.path}' if demo.verified else demo.problem}")


def _outcome(test: SelfTest | None, asked_not_to: bool) -> str:
    if test is None:
        return "left out" if asked_not_to else "not possible here"
    took = f"one demo image drawn and held against PyTorch's, {test.seconds:.1f} s"
    return f"passed ({took})" if test.passed else f"FAILED ({took})"
