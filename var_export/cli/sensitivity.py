"""`var-export sensitivity`: what each layer costs in fidelity, quantised alone, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import command_line, json_out, print_table
from engines.machine import machine
from engines.spec.choices import GRAPH_TARGETS, INT8
from var_export.cli.common import (
    FOLDER,
    PAGE_SUFFIXES,
    Figure,
    check_report,
    html_option,
    json_option,
    needs_export_packages,
    open_bundle,
    show,
    show_written,
    threads_option,
)
from var_export.cli.int8 import CALIBRATION_NAMES, CalibrationSource, calibration_options, calibration_wishes
from var_export.cli.progress import Progress

if TYPE_CHECKING:
    from calib.judge.table import Effect, Sensitivity

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@click.command(short_help="Quantise each layer alone and see what it does.")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--target",
    type=click.Choice(GRAPH_TARGETS),
    default=GRAPH_TARGETS[0],
    show_default=True,
    help="Whose form of INT8; tensorrt stands for tensorrt-rtx too.",
)
@calibration_options
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the table too: a .png, .svg or .pdf.",
)
@threads_option
@html_option
@json_option
@click.pass_context
def sensitivity(
    context: click.Context,
    /,
    bundle: Path,
    target: str,
    plot: Path | None,
    threads: int | None,
    html: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Quantise each layer of a float BUNDLE alone, hold it against the golden run, and time it.

    BUNDLE is in FP32 (in FP16 for tensorrt) and stays as it is. What was measured is kept beside the calibration: an
    interrupted run goes on, and `build --precision int8 --max-loss` chooses from it.
    """
    if plot is not None:
        check_report("--plot", plot, PLOT_SUFFIXES)
    if html is not None:
        check_report("--html", html, PAGE_SUFFIXES)
    with needs_export_packages("sensitivity", INT8):
        from calib.judge.sensitivity import measure, sensitivity_file
        from calib.quantise import check_base
        from calib.rewrite.graphs_of_bundle import Int8Options
    here = machine()
    options = Int8Options(target=target)
    base = open_bundle(bundle)
    check_base(base, options)
    wishes = calibration_wishes(context, {name: values[name] for name in CALIBRATION_NAMES}, options)
    with Progress() as progress:
        calibrated = CalibrationSource(base, wishes, bundle.parent, threads, progress)
        file = sensitivity_file(calibrated.file, target)
        table = measure(base, calibrated(), wishes.options, file=file, threads=threads, progress=progress)
    if as_json:
        json_out(
            {"bundle": str(base.path), "target": target, "file": str(file)}
            | {name: value for name, value in table.to_dict().items() if name != "format"}
        )
    else:
        _print(table)
        show(f"\nkept in {file}", to_stdout=True)
    if plot is not None:
        from var_export.report.layers import plot_layers

        plot_layers(table, plot, f"{base.name}, each layer alone in INT8")
        show(f"chart: {plot}")
    if html is not None:
        from var_export.report.sensitivity import Evidence, write_sensitivity

        evidence = Evidence(
            bundle=base, table=table, target=target, file=file, machine=here, command=command_line(context)
        )
        show_written(html, write_sensitivity(html, evidence))


def _print(table: Sensitivity) -> None:
    """A table per part of the model, the most sensitive layers first."""
    from calib.judge.table import SECONDS
    from engines.spec.contract import DECODER, ENCODER, TRANSFORMER

    unit = "saved ms" if table.unit == SECONDS else "GMAC"
    scale = 1e3 if table.unit == SECONDS else 1e-9
    show(f"in float KL is {table.float_kl:.1e}; quantised alone, worst first:", to_stdout=True)
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
        show(to_stdout=True)
        print_table(rows, ("layer", "way", unit, *headers))
