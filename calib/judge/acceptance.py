"""What every build of a bundle ends in, whatever it is made from: the check by which it earns its name. Torch-free."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from calib.graphs.changed import ChangedGraphs
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import BuildFigures
from engines.draw.device_check import DRAWING, ENCODING, measure
from engines.draw.pipeline import Pipeline
from engines.errors import CheckFailedError, NotFiniteError
from engines.fidelity.checks import verify
from engines.judging.reports import Report
from engines.progress import Progress, silent

Checked = tuple[dict[str, Report], dict[str, BuildFigures]]
"""What was found of each form, and what of it the manifest keeps."""


@dataclass(frozen=True)
class Built:
    """The outcome of `build`."""

    bundle: Bundle
    reused: bool
    reports: dict[str, Report]
    """The check of each form against the golden run, emulated where no CPU runs the bundle; empty where a finished
    bundle was found."""
    emulated: dict[str, Report] = field(default_factory=dict)
    """The same with the rounding of a GPU emulated, of FP16 that the CPU has run too."""


def check(bundle: Bundle, threads: int | None, *, emulated: bool = False, progress: Progress = silent) -> Checked:
    """Run the engines of every form once against the golden run.

    `progress` is told how far it is. `emulated`: as a GPU rounds; so it is in any case where this CPU has no such
    arithmetic. Returns what was found of each form, and which of it the manifest keeps, to hold devices to: nothing of
    an emulation beside the CPU's own run.
    Raises `CheckFailedError`.
    """
    emulated = emulated or bundle.for_gpus
    reports: dict[str, Report] = {}
    figures: dict[str, BuildFigures] = {}
    with contextlib.ExitStack() as stack:
        sessions = None
        if emulated:
            sessions = stack.enter_context(ChangedGraphs(bundle, emulated=True, beside=bundle.path)).open
        how = f" with the rounding of {bundle.high_precision.upper()} emulated" if emulated else ""
        for form in bundle.forms:
            line = (
                f"check: engines against the golden run{', rounding emulated in FP32' if emulated else ''}: {form} form"
            )
            progress(line)
            backend = OnnxRuntimeBackend(threads=threads, sessions=sessions)
            with Pipeline(bundle, backend, form=form, max_batch=1) as pipeline:
                try:
                    report = reports[form] = replace(
                        verify(pipeline, bundle.golden, on_share=partial(progress, line)), emulated=emulated
                    )
                except NotFiniteError as error:
                    raise CheckFailedError(f"the exported {form} engines cannot draw{how}: {error}") from error
                if emulated == bundle.for_gpus:  # else the CPU's own figures are those that devices are held to
                    figures[form] = _kept(report, measure(pipeline, DRAWING) | measure(pipeline, ENCODING))
            if not report.passed:
                failures = "; ".join(report.failures)
                raise CheckFailedError(
                    f"the exported {form} engines miss the reference{how}: {failures}", report.failed_parts
                )
    return reports, figures


def _kept(report: Report, first: Mapping[str, list[float]]) -> BuildFigures:
    """What the manifest keeps: not the PSNR of equal pixels, which no JSON document has a number for."""
    run = {figure.kind.name: figure.value for figure in report.figures()}
    return BuildFigures(
        {name: value for name, value in run.items() if math.isfinite(value)},
        {name: values for name, values in first.items() if math.isfinite(sum(values))},
    )
