"""`var-export doctor`: what this machine and environment can do, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import json_option, json_out, print_table, show, threads_option, version
from engines.errors import CheckFailedError
from engines.words import mebibytes

if TYPE_CHECKING:
    from engines.host.environment import Capability, DemoState, SelfTest
    from engines.machine import Machine


@click.command(short_help="Look at the environment, and test that it works.")
@click.option("--no-run", is_flag=True, help="Leave out the self-test.")
@threads_option
@json_option
def doctor(no_run: bool, threads: int | None, as_json: bool) -> None:
    """Look at the environment, say what is missing, and draw a demo image to see that it works.

    The exit code is 1 where the self-test fails.
    """
    from engines.bundle import bundle
    from engines.host import environment
    from engines.machine import machine

    here, versions = machine(), environment.installed()
    available, problem = environment.providers()
    can = environment.capabilities(versions, available, problem)
    warnings = environment.warnings(versions, here)
    demo = environment.demo_state(bundle.DEMO_BUNDLE)
    possible = demo.verified and any(c.usable for c in can if c.what == environment.RUN_ON_CPU)
    test = environment.self_test(demo.path, threads=threads) if possible and not no_run else None
    if as_json:
        json_out(_document(here, versions, available, can, warnings, demo, test))
    else:
        _print(here, versions, available, can, warnings, demo)
        show(f"self-test:  {_outcome(test, no_run)}")
    if demo.present and not demo.verified:
        raise CheckFailedError(f"the embedded demo bundle is damaged: {demo.problem}")
    if test is not None and not test.passed:
        raise CheckFailedError(f"the self-test failed: {'; '.join(test.failures)}")


def _print(
    here: Machine,
    versions: dict[str, str | None],
    available: tuple[str, ...],
    can: list[Capability],
    warnings: list[str],
    demo: DemoState,
) -> None:
    show(f"var-export: {version()}, Python {here.python}")
    show(f"machine:    {here} ({mebibytes(here.available)} available)")
    show(f"providers:  {', '.join(available) or 'none'}")
    show()
    print_table([(name, found or "not installed") for name, found in versions.items()], ("package", "version"))
    show()
    rows = [(c.what, "yes" if c.usable else "no", c.reason + (f"; {c.fix}" if c.fix else "")) for c in can]
    print_table(rows, ("can it", "", "because"))
    show()
    for warning in warnings:
        show(f"warning:    {warning}")
    state = f"verified, {demo.path}" if demo.verified else demo.problem
    show(f"demo:       {state}")


def _outcome(test: SelfTest | None, asked_not_to: bool) -> str:
    if test is None:
        return "left out" if asked_not_to else "not possible here"
    took = f"one demo image drawn and held against PyTorch's, {test.seconds:.1f} s"
    return f"passed ({took})" if test.passed else f"FAILED ({took})"


def _document(
    here: Machine,
    versions: dict[str, str | None],
    available: tuple[str, ...],
    can: list[Capability],
    warnings: list[str],
    demo: DemoState,
    test: SelfTest | None,
) -> dict[str, Any]:
    return {
        "version": version(),
        "machine": asdict(here),
        "packages": versions,
        "providers": list(available),
        "capabilities": [asdict(capability) for capability in can],
        "warnings": warnings,
        "demo": asdict(demo) | {"path": str(demo.path)},
        "self_test": None if test is None else asdict(test) | {"failures": list(test.failures)},
    }
