"""`var-export build`: from a checkpoint to a bundle."""

from __future__ import annotations

import errno
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import json_out
from engines.errors import UsageError
from engines.spec.choices import (
    BACKENDS,
    BUNDLE_FORMS,
    DEFAULT_MAX_TOP_K,
    INT8,
    ONNXRUNTIME,
    PLAN_TARGETS,
    PRECISIONS,
    STEPWISE,
)
from var_export.cli.common import (
    CHECKPOINT,
    FOLDER,
    POSITIVE,
    is_bundle,
    json_option,
    mebibytes,
    needs_export_packages,
    quality,
    set_option,
    show,
    threads_option,
    torch_threads,
)
from var_export.cli.int8 import Wishes, int8_options, quantized, take_int8_values
from var_export.cli.progress import Progress
from var_export.cli.tensorrt import (
    make_plans,
    parse_plan_options,
    plan_options,
    plans_document,
    print_plans,
    refuse_plan_options,
    take_plan_values,
)

if TYPE_CHECKING:
    from calib.judge.assembly import Built
    from engines.bundle.bundle import Bundle
    from engines.fidelity.reports import FusedReport, Report

EXAMPLE_CLASS = 88
BUNDLES = Path("bundles")
_OF_CHECKPOINTS = ("vae", "config", "overrides", "labels", "default_cfg", "name", "max_top_k", "smooth")
_OF_BUILDS = ("precision", "form", "out", "threads", "force")  # of a checkpoint, or of INT8 from a float bundle
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

_EPILOG = """\b
Examples:
  var-export build                                     the embedded demo model
  var-export build var_d16.pth --vae vae_ch160v4096z32.pth
  var-export build hf://FoundationVision/var/var_d16.pth
  var-export build runs/ar-ckpt-best.pth --config config.json --default-cfg 1.5
  var-export build --precision int8
  var-export build bundles/var-d16-256-fp16 --target tensorrt
  var-export build bundles/var-d16-256-fp16 --target tensorrt-rtx --compute-capability 8.9 --batch 1:1:4
"""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of `var-export build`, parsed."""

    checkpoint: str | None
    precision: str
    target: str
    form: str
    vae: str | None
    config: str | None
    overrides: dict[str, str]
    labels: str | None
    default_cfg: float | None
    name: str | None
    out: Path | None
    max_top_k: int
    smooth: bool
    threads: int | None
    force: bool
    as_json: bool


@click.command(epilog=_EPILOG, short_help="Build a bundle from a VAR checkpoint.")
@click.argument("checkpoint", required=False, type=CHECKPOINT)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp16", show_default=True, help="Of the engines.")
@click.option(
    "--target", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True, help="What runs the engines."
)
@click.option(
    "--form",
    type=click.Choice(BUNDLE_FORMS),
    default=STEPWISE,
    show_default=True,
    help="Scale by scale (previews, editing), or class to image in one graph.",
)
@click.option("--vae", type=CHECKPOINT, metavar="FILE", help="The VQ-VAE. [default: in CHECKPOINT, or beside it]")
@click.option("--config", type=CHECKPOINT, metavar="FILE", help="A config.json. [default: the one beside CHECKPOINT]")
@set_option("What no tensor says, such as vae.quant_resi=0.5; repeatable.")
@click.option("--labels", type=CHECKPOINT, metavar="FILE", help="Names of the classes, one per line.")
@click.option(
    "--default-cfg",
    type=click.FloatRange(min=0),
    metavar="FLOAT",
    help="Guidance to recommend; 0 where trained without.",
)
@click.option("--name", help="What to call the model. [default: from the checkpoint]")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where the bundle goes. [default: bundles/NAME-PRECISION]")
@click.option(
    "--max-top-k",
    type=POSITIVE,
    default=DEFAULT_MAX_TOP_K,
    show_default=True,
    help="Largest top-k that can be asked for.",
)
@click.option("--smooth", is_flag=True, help="Graphs that can mix codebook entries, for `var-run --smooth`.")
@int8_options
@plan_options
@click.option("--no-plans", is_flag=True, help="Stop before the plans: for a bundle that is copied to its GPU.")
@threads_option
@click.option("--force", is_flag=True, help="Replace a bundle that was made from something else.")
@json_option
@click.pass_context
def build(context: click.Context, /, **values: Any) -> None:
    """Build a bundle from a VAR checkpoint (a file, a folder, or hf://OWNER/REPO/FILE), or plans from a bundle.

    Without CHECKPOINT, the small demo model that comes with this package. The engines are checked against
    PyTorch before the bundle gets its name; a build that is interrupted leaves nothing behind. With --target
    tensorrt or tensorrt-rtx, NVIDIA plans join the bundle; CHECKPOINT may then be a bundle, and no PyTorch is needed.
    --precision int8 calibrates a bundle in FP32 (in FP16 for NVIDIA), which is built first where none is given.
    """
    device, plan_values, no_plans = values["device"], take_plan_values(values), values.pop("no_plans")
    wishes = take_int8_values(context, values, values["target"])
    options = BuildOptions(**values)
    plans = parse_plan_options(options.target, plan_values) if options.target in PLAN_TARGETS else None
    if plans is None:
        refuse_plan_options(context, options.target)
    bundle = _given_bundle(context, options, wishes, no_plans)
    built: Built | None = None
    with Progress() as progress, _Interrupts() as interrupts:
        if bundle is None or wishes is not None:
            if wishes is None:
                built = _build(options, progress, interrupts)
            else:
                built = _build_int8(options, wishes, bundle, progress, interrupts)
            bundle = built.bundle.path
        if no_plans:
            plans = None
        seconds = progress.seconds
        if plans is not None:
            interrupts.message = f"interrupted: {bundle} is as it was"
            made = make_plans(bundle, options.target, plans, device, progress)
            if built is not None:
                built = replace(built, bundle=_opened(bundle))
    if options.as_json:
        document = {"path": str(bundle)} if built is None else _document(built, seconds)
        json_out(document if plans is None else document | {"plans": plans_document(*made)})
        return
    if built is not None:
        _summary(built, seconds)
    if plans is not None:
        print_plans(*made)
        if built is None:
            show(f"next: {_next_command(_opened(bundle))}", to_stdout=True)


def _opened(path: str | Path, *, verify: bool = False) -> Bundle:
    from engines.bundle.bundle import Bundle

    return Bundle.open(path, verify=verify)


def _given_bundle(context: click.Context, options: BuildOptions, wishes: Wishes | None, no_plans: bool) -> Path | None:
    """The bundle that was given in place of a checkpoint. Raises `UsageError` where nothing is left to do for it."""
    if options.checkpoint is None or not is_bundle(options.checkpoint):
        return None
    bundle = _opened(options.checkpoint)
    if options.target not in PLAN_TARGETS and wishes is None:
        runs = "" if _is_for_gpus(bundle) else f", which ONNX Runtime runs as it is: {_next_command(bundle)}"
        raise UsageError(
            f"{options.checkpoint} is a bundle already{runs}; "
            f"for an NVIDIA GPU add --target {' or '.join(PLAN_TARGETS)}"
        )
    if no_plans and wishes is None:
        raise UsageError(
            f"{options.checkpoint} is a bundle already: --no-plans leaves nothing to build; copy it as it is"
        )
    default = click.core.ParameterSource.DEFAULT
    refused = _OF_CHECKPOINTS if wishes is not None else (*_OF_CHECKPOINTS, *_OF_BUILDS)
    for parameter in context.command.params:
        if parameter.name in refused and context.get_parameter_source(parameter.name) is not default:
            raise UsageError(f"{parameter.opts[0]} is for checkpoints; {options.checkpoint} is a bundle")
    return bundle.path


def _build(options: BuildOptions, progress: Progress, interrupts: _Interrupts, folder: Path = BUNDLES) -> Built:
    def stage(line: str) -> None:
        interrupts.check(holding=line.startswith("graph:"))
        progress(line)

    progress("loading PyTorch")
    with needs_export_packages("building"):
        from var_export.build import Options, build
        from var_export.live import DEMO, open_checkpoint
    from engines import backends

    backends.create("onnxruntime", threads=options.threads).close()  # what is missing shows now, not in minutes
    stage("reading the checkpoint")
    checkpoint = open_checkpoint(
        options.checkpoint or DEMO,
        vae=options.vae,
        config=options.config,
        overrides=options.overrides,
        labels=options.labels,
        default_cfg=options.default_cfg,
        name=options.name,
    )
    out = options.out or folder / f"{checkpoint.config.name}-{options.precision}{_suffix(options.form, options.smooth)}"
    interrupts.message = f"interrupted: nothing half-written is left at {out}"
    settings = Options(
        precision=options.precision, form=options.form, max_top_k=options.max_top_k, smooth=options.smooth
    )
    with _disk_errors(out), torch_threads(options.threads):
        return build(
            checkpoint, out, settings, force=options.force, release=True, threads=options.threads, progress=stage
        )


def _build_int8(
    options: BuildOptions, wishes: Wishes, given: Path | None, progress: Progress, interrupts: _Interrupts
) -> Built:
    """Quantise the bundle that was given, or one that is built from the checkpoint and stays beside the result."""
    precision = wishes.options.base_precision
    if given is None:
        folder = options.out.parent if options.out is not None else BUNDLES
        plain = replace(options, precision=precision, form=STEPWISE, out=None)  # which calibration draws with
        given = _build(plain, progress, interrupts, folder).bundle.path
    base = _opened(given, verify=True)
    target = "" if wishes.options.target == ONNXRUNTIME else f"-{wishes.options.target}"
    out = options.out or BUNDLES / f"{base.name}-{INT8}{target}{_suffix(options.form, base.smooth)}"
    interrupts.message = f"interrupted: nothing half-written is left at {out}; the same command continues"
    with _disk_errors(out):
        return quantized(base, out, wishes, force=options.force, threads=options.threads, progress=progress)


def _suffix(form: str, smooth: bool) -> str:
    """Of a bundle's default name."""
    return ("" if form == STEPWISE else f"-{form}") + ("-smooth" if smooth else "")


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UsageError(f"cannot write {out} ({error.strerror}): make room, or choose another --out") from error


class _Interrupts:
    """Turns SIGINT and SIGTERM into one KeyboardInterrupt that says what is left.

    Python drops an exception that is raised inside of a destructor or a callback from C; the next stage
    raises it again. While a graph is traced it waits for that stage: PyTorch's dispatcher calls Python from C++ then,
    and aborts the process on an exception.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.message = "interrupted: nothing was written"
        self._seen = self._holding = False
        self._before: dict[signal.Signals, Any] = {}

    def check(self, *, holding: bool = False) -> None:
        """Raise where a signal came. `holding`: what comes until the next call is raised there."""
        if self._seen:
            raise KeyboardInterrupt(self.message)
        self._holding = holding

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if value is not None and self._seen:
            raise KeyboardInterrupt(self.message) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._seen = self._seen, True
        if self._holding and not again:
            show("interrupted: stopping after this graph")
        elif not again:  # a second one must not break the cleaning up
            raise KeyboardInterrupt(self.message)


def _summary(built: Built, seconds: float) -> None:
    bundle = built.bundle
    size = mebibytes(sum(entry.size for entry in bundle.files.values()))
    if built.reused:
        show(f"up to date: {bundle.path} ({size})", to_stdout=True)
    else:
        show(f"{bundle.path} ({size}, built in {seconds:.1f} s)", to_stdout=True)
    how = ", rounding emulated" if _is_for_gpus(bundle) else ""
    for form, report in built.reports.items():
        show(f"check of the {form} form against PyTorch{how}: passed; {_figures(report)}", to_stdout=True)
    show(f"next: {_next_command(bundle)}", to_stdout=True)


def _figures(report: Report | FusedReport) -> str:
    """The figures of a check that tell most, on one line."""
    from engines.fidelity.reports import Report

    images = f"images: {quality(report.image_psnr)}"
    if not isinstance(report, Report):
        return f"draws alike {report.draws:.2%}, {images}"
    total = report.total
    return (
        f"largest logit error {total.max_abs:.2g}, KL {total.kl:.1e}, top-1 {total.top1:.2%}, "
        f"draws alike {total.draws:.2%}, {images}"
    )


def _is_for_gpus(bundle: Bundle) -> bool:
    return bundle.for_gpus


def _next_command(bundle: Bundle) -> str:
    path = shlex.quote(str(bundle.path))
    if _is_for_gpus(bundle) and not bundle.plans:
        return f"var-export build {path} --target {PLAN_TARGETS[0]}"
    example = EXAMPLE_CLASS if bundle.config.transformer.num_classes > EXAMPLE_CLASS else 0
    return f"var-run --engine {path} --class {example}"


def _document(built: Built, seconds: float) -> dict[str, Any]:
    bundle = built.bundle
    return {
        "path": str(bundle.path),
        "name": bundle.name,
        "reused": built.reused,
        "seconds": seconds,
        "bytes": sum(entry.size for entry in bundle.files.values()),
        "precision": bundle.precision,
        "form": bundle.form,
        "target": bundle.target,
        "build_key": bundle.build_key,
        "checks": {form: report.to_dict() for form, report in built.reports.items()},
        "next": _next_command(bundle),
    }
