"""The half of `var-export build` that makes plans for NVIDIA GPUs: its options, the build, the check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.errors import CheckFailedError, UsageError
from engines.spec.choices import HARDWARE_COMPATIBILITY, PLAN_TARGETS, STEPWISE
from var_export.cli.common import POSITIVE, mebibytes, quality, show

if TYPE_CHECKING:
    from engines.backends.tensorrt.build import BuiltPlans
    from engines.backends.tensorrt.options import PlanOptions
    from engines.bundle.plans import PlanSet
    from engines.fidelity.reports import FusedReport, Report
    from var_export.cli.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
NAMES = (
    "batch",
    "workspace",
    "optimization_level",
    "timing_cache",
    "compute_capability",
    "hardware_compatibility",
    "weight_streaming",
    "builder_config",
    "device",
)
_FILE = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option(
        "--batch", metavar="N|MIN:OPT:MAX", default="1:1:8", show_default=True, help="Images of one call of a plan."
    ),
    click.option("--workspace", type=POSITIVE, metavar="MIB", help="Scratch memory that TensorRT may use, at most."),
    click.option(
        "--optimization-level", type=click.IntRange(0, 5), help="How long TensorRT searches. [default: TensorRT's, 3]"
    ),
    click.option("--timing-cache", type=_FILE, metavar="FILE", help="Kernel timings to keep between builds; tensorrt."),
    click.option(
        "--compute-capability",
        multiple=True,
        metavar="X.Y",
        help="Of the GPUs to build for, such as 8.9; repeatable; tensorrt-rtx. [default: of the GPU here]",
    ),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(HARDWARE_COMPATIBILITY),
        default=HARDWARE_COMPATIBILITY[0],
        show_default=True,
        help="Other GPUs that may run the plans; tensorrt.",
    ),
    click.option("--weight-streaming", is_flag=True, help="Keep weights in host memory where the GPU's is too small."),
    click.option(
        "--builder-config", type=_FILE, metavar="FILE", help="More builder settings, in the [tensorrt] table of a TOML."
    ),
    click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="Which GPU builds."),
)


def plan_options(command: Command) -> Command:
    """The options of a TensorRT build, which `take_plan_values` collects."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_plan_values(values: dict[str, Any]) -> dict[str, Any]:
    """Move the values of `plan_options` out of a command's `values`."""
    return {name: values.pop(name) for name in NAMES}


def parse_plan_options(target: str, values: dict[str, Any]) -> PlanOptions:
    """Checked before anything is built. Raises `UsageError`."""
    from engines.backends.tensorrt.options import PlanOptions, read_options
    from engines.backends.tensorrt.profiles import BatchRange

    options = PlanOptions(
        batch=BatchRange.parse(values["batch"]),
        workspace=values["workspace"],
        optimization_level=values["optimization_level"],
        timing_cache=values["timing_cache"],
        compute_capabilities=tuple(dict.fromkeys(values["compute_capability"])),
        hardware_compatibility=values["hardware_compatibility"],
        weight_streaming=values["weight_streaming"],
        extra=read_options(values["builder_config"]) if values["builder_config"] else {},
    )
    options.check_for(target)
    return options


def refuse_plan_options(context: click.Context, target: str) -> None:
    """Options of plans where none are built. Raises `UsageError`."""
    default = click.core.ParameterSource.DEFAULT
    given = [
        p.opts[0]
        for p in context.command.params
        if p.name in NAMES and context.get_parameter_source(p.name or "") is not default
    ]
    if given:
        raise UsageError(f"{given[0]} needs --target {' or '.join(PLAN_TARGETS)}, not {target}")


def make_plans(
    bundle: Path, target: str, options: PlanOptions, device: int, progress: Progress
) -> tuple[BuiltPlans, dict[str, Report | FusedReport], str | None]:
    """Build the plans of `bundle` and check them on the GPU; a set that misses the reference is taken out again.

    Returns what was built, a report per form, and why it was not checked, if it was not.

    Raises `CheckFailedError` where the plans miss the reference.
    """
    from engines.backends.tensorrt.build import build_plans
    from engines.bundle.writer import withdraw_plans

    built = build_plans(bundle, target, options, device=device, progress=progress)
    if built.reused:
        return built, {}, None
    reports, why_not = _check(bundle, target, device, built.plans, progress)
    failures = [failure for report in reports.values() for failure in report.failures]
    if failures:
        withdraw_plans(bundle, built.plans.name)
        raise CheckFailedError(f"the {target} plans miss the reference and were removed: {'; '.join(failures)}")
    return built, reports, why_not


def _check(
    path: Path, target: str, device: int, plans: PlanSet, progress: Progress
) -> tuple[dict[str, Report | FusedReport], str | None]:
    from engines.backends.tensorrt.runner import TensorRTBackend
    from engines.bundle.bundle import Bundle
    from engines.draw.pipeline import Pipeline
    from engines.errors import BackendError
    from engines.fidelity.checks import verify, verify_fused

    bundle = Bundle.open(path, verify=False)
    try:
        TensorRTBackend(target, device=device).close()
    except BackendError as error:
        return {}, str(error)
    reports: dict[str, Report | FusedReport] = {}
    for form in bundle.forms:
        backend = TensorRTBackend(target, device=device)
        problems = [plans.why_not(backend.here, bundle.files, graph) for graph in bundle.graphs]
        if any(problems):  # built for other GPUs than the one here; what fits it may be an older set
            backend.close()
            return {}, f"{backend.here} cannot run them: {next(filter(None, problems))}"
        progress(f"check: {form} plans against the golden run")
        with Pipeline(bundle, backend, form=form, max_batch=1) as pipeline:
            judge = verify if form == STEPWISE else verify_fused
            reports[form] = judge(pipeline, bundle.golden)
    return reports, None


def print_plans(built: BuiltPlans, reports: dict[str, Report | FusedReport], why_not: str | None) -> None:
    """The outcome, for people."""
    plans = built.plans
    size = mebibytes(sum(plan.size for plan in plans.graphs.values()))
    seconds = sum(plan.seconds for plan in plans.graphs.values())
    if built.reused:
        show(f"up to date: plans {plans.name} ({size})", to_stdout=True)
        return
    show(f"plans {plans.name} ({size}, built in {seconds:.0f} s): {plans}", to_stdout=True)
    for name in built.superseded:
        show(f"they take the place of {name}", to_stdout=True)
    for form, report in reports.items():
        show(f"check of the {form} plans against PyTorch: passed; images: {quality(report.image_psnr)}", to_stdout=True)
    if why_not is not None:
        show(f"built, not run: {why_not}", to_stdout=True)


def plans_document(built: BuiltPlans, reports: dict[str, Report | FusedReport], why_not: str | None) -> dict[str, Any]:
    """The outcome as plain JSON types."""
    return {
        **built.plans.to_dict(),
        "reused": built.reused,
        "superseded": list(built.superseded),
        "checks": {form: report.to_dict() for form, report in reports.items()},
        "not_checked": why_not,
    }
