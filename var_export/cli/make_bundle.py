"""How `var-export build` makes a bundle: from a checkpoint, and in integers from a float bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import POSITIVE, filled_by, option, option_group, tell, threads_option
from engines.cli.interrupts import Interrupts
from engines.cli.progress import StageClock
from engines.errors import UsageError
from engines.spec.choices import BUNDLE_FORMS, DEFAULT_MAX_TOP_K, INT8, ONNXRUNTIME, PRECISIONS, STEPWISE, TARGETS
from engines.storage import DISK_ERRORS
from var_export.cli.base import Origin, as_in, find_base, origin_of, remember
from var_export.cli.common import (
    CHECKPOINT,
    FOLDER,
    CheckpointParts,
    needs_export_packages,
    torch_threads,
)
from var_export.cli.quantising import CalibrationOptions, LayerOptions, calibration_of, calibration_options
from var_export.cli.tensorrt import BuilderOptions

if TYPE_CHECKING:
    from calib.choose.options import QuantisationOptions
    from calib.judge.acceptance import Built
    from engines.bundle.manifest import Manifest

BUNDLES = Path("bundles")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, and of what."""

    checkpoint: str | None = filled_by(click.argument("checkpoint", required=False, type=CHECKPOINT))
    precision: str = option(type=click.Choice(PRECISIONS), default="fp16", help="Of the engines.")
    target: str = option(type=click.Choice(TARGETS), default=TARGETS[0], help="What runs the engines.")
    form: str = option(
        type=click.Choice(BUNDLE_FORMS),
        default=STEPWISE,
        help="Scale by scale (previews, editing), or class to image in one graph.",
    )
    parts: CheckpointParts = filled_by(
        option_group(
            "parts",
            CheckpointParts,
            vae="The VQ-VAE. [default: in CHECKPOINT, or beside it]",
            config="A config.json. [default: the one beside CHECKPOINT]",
            overrides="What no tensor says, such as vae.quant_resi=0.5; repeatable.",
        )
    )
    labels: str | None = option(
        type=CHECKPOINT,
        metavar="none|imagenet|FILE",
        help="Names of the classes. [default: labels.txt beside CHECKPOINT; ImageNet's of the published models]",
    )
    default_cfg: float | None = option(
        type=click.FloatRange(min=0),
        metavar="FLOAT",
        help="Guidance to recommend; 0 where trained without.",
    )
    name: str | None = option(help="What to call the model. [default: from the checkpoint]")
    out: Path | None = option(
        type=FOLDER, metavar="DIR", help="Where the bundle goes. [default: bundles/NAME-PRECISION]"
    )
    max_top_k: int = option(
        type=POSITIVE,
        default=DEFAULT_MAX_TOP_K,
        help="Largest top-k that can be asked for.",
    )
    keep_fp32: tuple[str, ...] = option(
        multiple=True,
        metavar="PATTERN",
        help="Of FP16 and BF16: layers to compute in FP32, beside those that overflow; repeatable.",
    )
    smooth: bool = option(is_flag=True, help="Graphs that can mix codebook entries, for `var-run --smooth`.")
    layers: LayerOptions = filled_by(option_group("layers", LayerOptions))
    calibrating: CalibrationOptions = filled_by(calibration_options)
    builder: BuilderOptions = filled_by(option_group("builder", BuilderOptions))
    no_plans: bool = option(is_flag=True, help="Stop before the plans: for a bundle that is copied to its GPU.")
    threads: int | None = filled_by(threads_option)
    force: bool = option(is_flag=True, help="Replace a bundle that was made from something else.")


@dataclass(frozen=True)
class BundleWork:
    """One build: what was asked for, where its progress goes, and what interrupts it."""

    options: BuildOptions
    progress: StageClock
    interrupts: Interrupts

    def build_float(self, folder: Path = BUNDLES, like: Manifest | None = None) -> Built:
        """Build what the options say from their checkpoint, in `folder` unless they say where.

        `like`: a bundle of the same checkpoint, whose labels and recommended settings are taken over.
        """

        def stage(line: str, done: float | None = None) -> None:
            self.interrupts.check(holding=line.startswith("graph:"))
            self.progress(line, done)

        options = self.options
        self.progress("loading PyTorch")
        with needs_export_packages("building"):
            from var_export.build import FloatOptions, build
            from var_export.checkpoint.load import DEMO, load_checkpoint
        from engines import backends

        backends.create(ONNXRUNTIME, threads=options.threads).close()  # what is missing shows now, not in minutes
        stage("reading the checkpoint")
        checkpoint = load_checkpoint(
            options.checkpoint or DEMO,
            **vars(options.parts),
            labels=options.labels,
            default_cfg=options.default_cfg,
            name=options.name,
        )
        remember(checkpoint, Origin(options.checkpoint, options.parts))
        if like is not None:
            checkpoint = as_in(like, checkpoint)
        name = f"{checkpoint.config.name}-{options.precision}{_suffix(options.form, options.smooth)}"
        out = options.out or folder / name
        self.interrupts.message = f"interrupted: nothing half-written is left at {out}"
        settings = FloatOptions(
            precision=options.precision,
            form=options.form,
            max_top_k=options.max_top_k,
            smooth=options.smooth,
            keep_fp32=options.keep_fp32,
        )
        with _disk_errors(out), torch_threads(options.threads):
            return build(
                checkpoint, out, settings, force=options.force, release=True, threads=options.threads, progress=stage
            )

    def build_quantised(self, context: click.Context, how: QuantisationOptions, given: Path | None) -> Built:
        """Quantise the bundle that was given, or one of its checkpoint: found, or built, and kept beside the result."""
        with needs_export_packages("quantising", "export" if given is None else INT8):
            from calib.judge.effects import sensitivity_file
            from calib.quantise import quantize_bundle
        from engines.bundle.bundle import Bundle

        options = self.options
        base = Bundle.open(self._base(how, given))
        target = "" if how.target == ONNXRUNTIME else f"-{how.target}"
        out = options.out or BUNDLES / f"{base.name}-{how.precision}{target}{_suffix(options.form, base.smooth)}"
        self.interrupts.message = f"interrupted: nothing half-written is left at {out}; the same command continues"
        shared: Any = {"threads": options.threads, "progress": self.progress}
        with _disk_errors(out):
            calibrated, file = calibration_of(context, base, options.calibrating, out.parent, **shared)
            sensitivity = sensitivity_file(file, how)
            return quantize_bundle(base, out, how, calibrated, sensitivity=sensitivity, force=options.force, **shared)

    def _base(self, how: QuantisationOptions, given: Path | None) -> Path:
        """The float bundle to quantise, which has the stepwise form: calibration draws with it.

        Raises `UsageError` where the given one does not fit, and there is no other and no telling what to build.
        """
        from calib.quantise import check_base
        from engines.bundle.bundle import Bundle

        options, precision = self.options, how.base_precision
        folder = BUNDLES if options.out is None else options.out.parent
        like = None if given is None else Bundle.open(given, verify=False)
        if like is not None:
            places = tuple(dict.fromkeys((like.path.parent, folder, BUNDLES)))
            found = find_base(like, how, places)
            if found is not None:
                return found
            origin = origin_of(like)
            if origin is None:
                try:
                    check_base(like, how)
                except UsageError as error:
                    raise UsageError(
                        f"{error}; {' and '.join(map(str, places))} hold no such bundle of this model, and where its "
                        "checkpoint lies is not known here: var-export build CHECKPOINT --precision "
                        f"{how.precision} makes both"
                    ) from error
            model: dict[str, Any] = {"name": like.name, "max_top_k": like.max_top_k, "smooth": like.smooth}
            # --force is about the quantised bundle: another one in the place of the base is not to be replaced.
            options = replace(options, **vars(origin), labels=None, default_cfg=None, force=False, **model)
        work = replace(self, options=replace(options, precision=precision, form=STEPWISE, out=None))
        built = work.build_float(folder, like)
        checkpoint = options.checkpoint or "the embedded demo checkpoint"
        whence = "there already" if built.reused else f"built from {checkpoint}"
        tell(f"taking {built.bundle.path}, the {precision.upper()} bundle of the same model, {whence}")
        return built.bundle.path


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
