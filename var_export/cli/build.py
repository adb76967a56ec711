"""`var-export build`: from a checkpoint to a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import json_option, json_out, option_group, refuse, show
from engines.cli.interrupts import Interrupts
from engines.cli.progress import StageClock
from engines.errors import BackendError, BundleError, UsageError
from engines.spec.choices import BACKENDS, PLAN_TARGETS, QUANTISED
from engines.words import mebibytes
from var_export.cli.common import CheckpointParts
from var_export.cli.make_bundle import BuildOptions, BundleWork
from var_export.cli.quantising import CalibrationOptions, LayerOptions, quantisation_options
from var_export.cli.tensorrt import BuilderOptions, make_plans

if TYPE_CHECKING:
    from calib.judge.acceptance import Built
    from engines.backends import Backend
    from engines.bundle.bundle import Bundle

EXAMPLE_CLASS = 88
_OF_CHECKPOINTS = (
    *(each.name for each in fields(CheckpointParts)),
    *("labels", "default_cfg", "name", "max_top_k", "smooth", "keep_fp32"),
)
_OF_BUILDS = ("precision", "form", "out", "threads", "force")  # of a checkpoint, or of integers from a float bundle

_EPILOG = """\b
Examples:
  var-export build                                     the embedded demo model
  var-export build var_d16.pth --vae vae_ch160v4096z32.pth
  var-export build hf://FoundationVision/var/var_d16.pth
  var-export build runs/ar-ckpt-best.pth --labels names.csv --default-cfg 1.5
  var-export build bundles/var-d16-256-fp16 --precision int8
  var-export build bundles/var-d30-256-fp32 --precision int4
  var-export build bundles/var-d16-256-fp16 --target tensorrt
  var-export build bundles/var-d16-256-fp16 --target tensorrt-rtx --compute-capability 8.9 --batch 1:1:4
"""


@click.command(epilog=_EPILOG)
@option_group("options", BuildOptions)
@json_option
@click.pass_context
def build(context: click.Context, /, options: BuildOptions, as_json: bool) -> None:
    """Build a bundle from a VAR checkpoint (a file, a folder, or hf://OWNER/REPO/FILE), or plans from a bundle.

    Without CHECKPOINT, the small demo model that comes with this package. The engines are checked against
    PyTorch before the bundle gets its name; a build that is interrupted leaves nothing behind. With --target
    tensorrt or tensorrt-rtx, NVIDIA plans join the bundle; CHECKPOINT may then be a bundle, and no PyTorch is needed.
    --precision int8 or int4 calibrates a bundle in FP32 (in FP16 for NVIDIA): the one that is given, or the one of its
    model beside it or in bundles/; else it is built first, from CHECKPOINT or the one of the given bundle.
    """
    quantising = None  # what is quantised, and how
    if options.precision in QUANTISED:
        quantising = quantisation_options(
            context, options.calibrating, options.target, options.layers, options.form, options.precision
        )
    else:
        for group in (LayerOptions, CalibrationOptions):
            refuse(context, group, f"needs --precision {' or '.join(QUANTISED)}")
    plans = options.builder.checked(options.target) if options.target in PLAN_TARGETS else None
    if plans is None:
        refuse(context, BuilderOptions, f"needs --target {' or '.join(PLAN_TARGETS)}, not {options.target}")
    bundle = _given_bundle(context, options, quantising is not None)
    built: Built | None = None
    with StageClock() as progress, Interrupts() as interrupts:
        work = BundleWork(options, progress, interrupts)
        if quantising is not None:
            built = work.build_quantised(context, quantising, bundle)
        elif bundle is None:
            built = work.build_float()
        path = bundle if built is None else built.bundle.path
        assert path is not None
        seconds = progress.seconds
        made = None
        if plans is not None and not options.no_plans:
            interrupts.message = f"interrupted: {path} is as it was"
            made = make_plans(path, options.target, plans, options.builder.device, progress)
            if built is not None:
                built = replace(built, bundle=_opened(path))
    if as_json:
        document = {"path": str(path)} if built is None else _document(built, seconds)
        json_out(document if made is None else document | {"plans": made.to_dict()})
        return
    if built is not None:
        _summary(built, seconds, options.labels)
    if made is not None:
        made.print()
        if built is None:
            show(_next_line(_opened(path)))


def _opened(path: str | Path) -> Bundle:
    from engines.bundle.bundle import Bundle

    return Bundle.open(path, verify=False)


def _given_bundle(context: click.Context, options: BuildOptions, quantised: bool) -> Path | None:
    """The bundle that was given in place of a checkpoint. Raises `UsageError` where nothing is left to do for it."""
    from engines.bundle.bundle import is_hub_bundle
    from engines.bundle.manifest import is_bundle
    from engines.hub import is_hub_name

    if options.checkpoint is None:
        return None
    on_hub = is_hub_name(options.checkpoint)
    if not (is_hub_bundle(options.checkpoint) if on_hub else is_bundle(Path(options.checkpoint))):
        return None
    bundle = _opened(options.checkpoint)
    if on_hub and options.target in PLAN_TARGETS and not quantised:
        raise UsageError(
            f"{options.checkpoint} lies in the cache of the Hub, where no plans can join it: download it first, "
            "as with hf download OWNER/REPO --local-dir FOLDER"
        )
    if options.target not in PLAN_TARGETS and not quantised:
        runs = "" if bundle.for_gpus else f", which ONNX Runtime runs as it is: {_next_command(bundle)}"
        raise UsageError(
            f"{options.checkpoint} is a bundle already{runs}; "
            f"for an NVIDIA GPU add --target {' or '.join(PLAN_TARGETS)}"
        )
    if options.no_plans and not quantised:
        raise UsageError(
            f"{options.checkpoint} is a bundle already: --no-plans leaves nothing to build; copy it as it is"
        )
    refused = _OF_CHECKPOINTS if quantised else (*_OF_CHECKPOINTS, *_OF_BUILDS)
    refuse(context, refused, f"is for checkpoints; {options.checkpoint} is a bundle")
    return bundle.path


def _summary(built: Built, seconds: float, labels: str | None) -> None:
    from engines.bundle.inspection import kept_lines
    from var_export.checkpoint.labels import IMAGENET_CLASSES

    bundle = built.bundle
    size = mebibytes(bundle.total_bytes)
    if built.reused:
        show(f"up to date: {bundle.path} ({size})")
    else:
        show(f"{bundle.path} ({size}, built in {seconds:.1f} s)")
    how = ", rounding emulated" if bundle.for_gpus else ""
    for form, report in built.reports.items():
        show(f"check of the {form} form against PyTorch{how}: passed; {report.summary()}")
    for form, report in built.emulated.items():
        show(f"check of the {form} form against PyTorch, rounding emulated: passed; {report.summary()}")
    for line in kept_lines(bundle):
        show(line)
    if labels is None and bundle.labels is None and bundle.config.transformer.num_classes == IMAGENET_CLASSES:
        show("the classes have no names: nothing says that these are ImageNet's; --labels imagenet, or --labels FILE")
    show(_next_line(bundle))


def _next_line(bundle: Bundle) -> str:
    where = "next" if _runs_here(bundle) else "next, with a copy of the bundle on the machine that is to run it"
    return f"{where}: {_next_command(bundle)}"


def _next_command(bundle: Bundle) -> str:
    """What to do with a bundle."""
    path = shlex.quote(str(bundle.path))
    if bundle.for_gpus and not bundle.plans:
        return f"var-export build {path} --target {(_builders() or PLAN_TARGETS)[0]}"
    example = EXAMPLE_CLASS if bundle.config.transformer.num_classes > EXAMPLE_CLASS else 0
    return f"var-run --bundle {path} --class {example}"


def _runs_here(bundle: Bundle) -> bool:
    """Whether this machine can do what `_next_command` says."""
    from engines import backends

    if bundle.for_gpus and not bundle.plans:
        return bool(_builders())
    wanted = PLAN_TARGETS if bundle.for_gpus else BACKENDS
    return _opens(partial(backends.for_bundle, bundle, tell=lambda line: None), wanted)


def _builders() -> list[str]:
    """The targets that plans can be built for here."""
    from engines import backends

    return [target for target in PLAN_TARGETS if _opens(partial(backends.create, target), PLAN_TARGETS)]


def _opens(make: Callable[[], Backend], wanted: Sequence[str]) -> bool:
    """Whether there is such a backend here, and it is one of those that are wanted."""
    try:
        backend = make()
    except (BackendError, BundleError):
        return False
    name = backend.describe()["backend"]
    backend.close()
    return name in wanted


def _document(built: Built, seconds: float) -> dict[str, Any]:
    from engines.bundle.inspection import kept_in_fp32

    bundle = built.bundle
    return {
        "path": str(bundle.path),
        "name": bundle.name,
        "reused": built.reused,
        "seconds": seconds,
        "bytes": bundle.total_bytes,
        "precision": bundle.precision,
        "form": bundle.form,
        "target": bundle.target,
        "build_key": bundle.build_key,
        "checks": {form: report.to_dict() for form, report in built.reports.items()},
        "emulated_checks": {form: report.to_dict() for form, report in built.emulated.items()},
        "kept_fp32": kept_in_fp32(bundle),
        "next": _next_command(bundle),
    }
