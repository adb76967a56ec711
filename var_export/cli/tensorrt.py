"""The half of `var-export build` that makes plans for NVIDIA GPUs: its options, the build, the check."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import POSITIVE, option, show
from engines.errors import CheckFailedError
from engines.spec.choices import HARDWARE_COMPATIBILITY
from engines.words import mebibytes
from var_export.cli.common import FILE

if TYPE_CHECKING:
    from engines.backends.tensorrt.build import BuiltPlans
    from engines.backends.tensorrt.options import PlanOptions
    from engines.bundle.plans import PlanSet
    from engines.judging.reports import Report
    from engines.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BuilderOptions:
    """How plans are built, as typed."""

    batch: str = option(metavar="N|MIN:OPT:MAX", default="1:1:8", help="Images of one call of a plan.")
    workspace: int | None = option(type=POSITIVE, metavar="MIB", help="Scratch memory that TensorRT may use, at most.")
    optimization_level: int | None = option(
        type=click.IntRange(0, 5), help="How long TensorRT searches. [default: TensorRT's, 3]"
    )
    timing_cache: Path | None = option(
        type=FILE, metavar="FILE", help="Kernel timings to keep between builds; tensorrt."
    )
    compute_capability: tuple[str, ...] = option(
        multiple=True,
        metavar="X.Y",
        help="Of the GPUs to build for, such as 8.9; repeatable; tensorrt-rtx. [default: of the GPU here]",
    )
    hardware_compatibility: str = option(
        type=click.Choice(HARDWARE_COMPATIBILITY),
        default=HARDWARE_COMPATIBILITY[0],
        help="Other GPUs that may run the plans; tensorrt.",
    )
    weight_streaming: bool = option(is_flag=True, help="Keep weights in host memory where the GPU's is too small.")
    builder_config: Path | None = option(
        type=FILE, metavar="FILE", help="More builder settings, in the [tensorrt] table of a TOML."
    )
    device: int = option(type=click.IntRange(min=0), default=0, help="Which GPU builds.")

    def checked(self, target: str) -> PlanOptions:
        """The same for the builder of `target`, before anything is built. Raises `UsageError`."""
        from engines.backends.tensorrt.options import PlanOptions, read_options
        from engines.backends.tensorrt.profiles import BatchRange

        options = PlanOptions(
            batch=BatchRange.parse(self.batch),
            workspace=self.workspace,
            optimization_level=self.optimization_level,
            timing_cache=self.timing_cache,
            compute_capabilities=tuple(dict.fromkeys(self.compute_capability)),
            hardware_compatibility=self.hardware_compatibility,
            weight_streaming=self.weight_streaming,
            extra=read_options(self.builder_config) if self.builder_config else {},
        )
        options.check_for(target)
        return options


@dataclass(frozen=True)
class MadePlans:
    """Plans that were built, or found, and the outcome of their check."""

    built: BuiltPlans
    reports: dict[str, Report]
    """A report per form; empty where they were not checked."""
    why_not: str | None
    """Why they were not checked, where that is not for having been there."""

    def print(self) -> None:
        """Tell people."""
        plans = self.built.plans
        size = mebibytes(sum(plan.size for plan in plans.graphs.values()))
        seconds = sum(plan.seconds for plan in plans.graphs.values())
        if self.built.reused:
            show(f"up to date: plans {plans.name} ({size})")
            return
        show(f"plans {plans.name} ({size}, built in {seconds:.0f} s): {plans}")
        for name in self.built.superseded:
            show(f"they take the place of {name}")
        for form, report in self.reports.items():
            show(f"check of the {form} plans against PyTorch: passed; {report.summary()}")
        if self.why_not is not None:
            show(f"built, not run: {self.why_not}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.built.plans.to_dict(),
            "reused": self.built.reused,
            "superseded": list(self.built.superseded),
            "checks": {form: report.to_dict() for form, report in self.reports.items()},
            "not_checked": self.why_not,
        }


def make_plans(bundle: Path, target: str, options: PlanOptions, device: int, progress: Progress) -> MadePlans:
    """Build the plans of `bundle` and check them on the GPU; a set that misses the reference is taken out again.

    Raises `CheckFailedError` where the plans miss the reference.
    """
    from engines.backends.tensorrt.build import build_plans
    from engines.bundle.writer import withdraw_plans

    built = build_plans(bundle, target, options, device=device, progress=progress)
    if built.reused:
        return MadePlans(built, {}, None)
    reports, why_not = _check(bundle, target, device, built.plans, progress)
    failures = [failure for report in reports.values() for failure in report.failures]
    if failures:
        withdraw_plans(bundle, built.plans.name)
        raise CheckFailedError(f"the {target} plans miss the reference and were removed: {'; '.join(failures)}")
    return MadePlans(built, reports, why_not)


def _check(
    path: Path, target: str, device: int, plans: PlanSet, progress: Progress
) -> tuple[dict[str, Report], str | None]:
    from engines.backends.tensorrt.runner import TensorRTBackend
    from engines.bundle.bundle import Bundle
    from engines.draw.pipeline import Pipeline
    from engines.errors import BackendError
    from engines.fidelity.checks import verify

    bundle = Bundle.open(path, verify=False)
    reports: dict[str, Report] = {}
    for form in bundle.forms:
        try:
            backend = TensorRTBackend(target, device=device)
        except BackendError as error:
            return {}, str(error)
        problems = [plans.why_not(backend.here, bundle.files, graph) for graph in bundle.graphs]
        if any(problems):  # built for other GPUs than the one here; what fits it may be an older set
            backend.close()
            return {}, f"{backend.here} cannot run them: {next(filter(None, problems))}"
        line = f"check: {form} plans against the golden run"
        progress(line)
        with Pipeline(bundle, backend, form=form, max_batch=1) as pipeline:
            reports[form] = verify(pipeline, bundle.golden, on_share=partial(progress, line))
    return reports, None
