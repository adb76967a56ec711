"""`var-export sensitivity`: what each layer costs in fidelity, quantised alone, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.cli.common import Figure, command_line, json_option, json_out, print_table, show, tell, threads_option
from engines.cli.progress import StageClock
from engines.machine import machine
from engines.spec.choices import GRAPH_TARGETS, INT8, QUANTISED
from var_export.cli.base import find_base
from var_export.cli.common import (
    FOLDER,
    html_option,
    needs_export_packages,
    open_bundle,
    report_option,
    tell_page,
)
from var_export.cli.quantising import CalibrationOptions, calibration_of, calibration_options, quantisation_options

if TYPE_CHECKING:
    from calib.judge.effects import Effect, Sensitivity


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--target",
    type=click.Choice(GRAPH_TARGETS),
    default=GRAPH_TARGETS[0],
    help="Whose form of integers; tensorrt stands for tensorrt-rtx too.",
)
@click.option(
    "--precision", type=click.Choice(QUANTISED), default=INT8, help="INT8, or INT4 with its choice of 4 and 8 bits."
)
@calibration_options
@report_option("--plot", (".png", ".svg", ".pdf"), "Draw the table too: a .png, .svg or .pdf.")
@threads_option
@html_option
@json_option
@click.pass_context
def sensitivity(
    context: click.Context,
    /,
    bundle: Path,
    target: str,
    precision: str,
    calibrating: CalibrationOptions,
    plot: Path | None,
    threads: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Quantise each layer of a float BUNDLE alone, hold it against the golden run, and time it.

    BUNDLE is in FP32 (in FP16 for tensorrt), or has such a bundle of its model beside it, and stays as it is. What was
    measured is kept beside the calibration: an interrupted run goes on, and `build --max-loss` of that precision
    chooses from it.
    """
    with needs_export_packages("sensitivity", INT8):
        from calib.judge.effects import measure, sensitivity_file
        from calib.quantise import check_base
    here = machine()
    options = quantisation_options(context, calibrating, target, precision=precision)
    base = open_bundle(find_base(open_bundle(bundle, verify=False), options, [bundle.parent]) or bundle)
    check_base(base, options)
    with StageClock() as progress:
        calibrated, kept = calibration_of(context, base, calibrating, bundle.parent, threads=threads, progress=progress)
        file = sensitivity_file(kept, options)
        table = measure(base, calibrated(), options, file=file, threads=threads, progress=progress)
    if as_json:
        json_out(
            {"bundle": str(base.path), "precision": precision, "target": target, "file": str(file)}
            | {name: value for name, value in table.to_dict().items() if name != "format"}
        )
    else:
        _print(table)
        show(f"\nkept in {file}")
    if plot is not None:
        from var_export.report.layers import plot_layers

        plot_layers(table, plot, f"{base.name}, each layer alone in {precision.upper()}")
        tell(f"chart: {plot}")
    if html is not None:
        from var_export.report.sensitivity import write_sensitivity

        command = command_line(context)
        how = (precision.upper(), target)
        size = write_sensitivity(html, base, table, how=how, kept_in=file, machine=here, command=command)
        tell_page(html, size)


def _print(table: Sensitivity) -> None:
    """A table per part of the model, the most sensitive layers first."""
    from calib.judge.effects import UNITS
    from engines.spec.contract import DECODER, ENCODER, TRANSFORMER

    unit, scale = UNITS[table.unit]
    show(f"in float KL is {table.float_kl:.1e}; quantised alone, worst first:")
    figures: tuple[tuple[str, tuple[str, ...], Callable[[Effect], tuple[Figure, ...]]], ...] = (
        (TRANSFORMER, ("KL", "top-1 %"), lambda effect: (Figure(effect.kl, ".2e"), Figure(100 * effect.top1, ".2f"))),
        (DECODER, ("image PSNR dB",), lambda effect: (Figure(effect.image_psnr, ".1f"),)),
        (ENCODER, ("reconstruction loss dB",), lambda effect: (Figure(effect.reconstruction_loss or 0.0, "+.2f"),)),
    )
    for part, headers, figures_of in figures:
        rows = [
            (effect.layer, effect.way, Figure(effect.saved * scale, ".2f"), *figures_of(effect))
            for effect in table.worst_first(part)
        ]
        show()
        print_table(rows, ("layer", "way", unit, *headers))
