"""The steps that build: a bundle by the normal build, its plans, and parts of a bundle."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.backends.tensorrt.build import build_plans
from engines.backends.tensorrt.options import PlanOptions
from engines.backends.tensorrt.profiles import BatchRange
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Manifest, needed_files
from engines.bundle.writer import BundleWriter
from engines.cli.common import peak_memory
from engines.errors import BackendError, BundleError
from engines.packages import install_command
from engines.progress import Progress
from engines.spec.choices import BOTH
from engines.spec.config import ModelConfig
from engines.spec.sampling import Sampling
from engines.storage import digest_of, link_or_copy
from var_export.gpu_check.cases import StepJob, bundle_folder, plans_folder

if TYPE_CHECKING:
    from var_export.checkpoint.load import Checkpoint

RANDOM = {"d16": ModelConfig(name="var-d16-256-random")}
"""Models with random weights; the others are the embedded demo."""
RANDOM_SEED = 0


def bundle(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Build the bundle of a model in one precision, both forms, or find it there.

    Where PyTorch is missing, as on many a Jetson, a bundle that was copied here serves.
    """
    folder = bundle_folder(job.out, job.step)
    tell("loading PyTorch")
    try:
        from var_export.build import FloatOptions, build
    except ImportError as error:
        try:
            found = _of_step(Bundle.open(folder), job)
        except BundleError as problem:
            raise BackendError(
                f"building needs PyTorch and its exporter ({error}): {install_command('export')}, "
                f"or copy {folder} from another machine's check ({problem})"
            ) from error
        return _document(found) | {"reused": True, "checks": {}, "peak_memory": peak_memory()}
    tell("making the checkpoint")
    checkpoint = checkpoint_of(job.step.model)
    # The demo with smoothing, so that its check holds that against the reference as well; d16 is there to be timed.
    options = FloatOptions(precision=job.step.precision, form=BOTH, smooth=job.step.model not in RANDOM)
    built = build(checkpoint, folder, options, force=True, release=True, progress=tell)
    return _document(built.bundle) | {
        "reused": built.reused,
        "checks": {form: report.to_dict() for form, report in built.reports.items()},
        "peak_memory": peak_memory(),
    }


def _of_step(found: Bundle, job: StepJob) -> Bundle:
    """`found`, if it is one that the step could have built. Raises `BundleError`."""
    sizes = RANDOM.get(job.step.model)
    if (found.precision, found.form) != (job.step.precision, BOTH):
        raise BundleError(f"{found.path} holds {found.precision}, {found.form}, not {job.step.precision}, {BOTH}")
    if sizes is None and not found.smooth:
        raise BundleError(f"{found.path} was built without smoothing, which the check looks at")
    if sizes is not None and found.config.to_dict() != sizes.to_dict():
        raise BundleError(f"{found.path} holds {found.name}, not {sizes.name}")
    return found


def _document(made: Bundle) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "name": made.name,
        "build_key": made.build_key,
        "weights_bytes": made.weights_bytes(),
        "patch_nums": list(made.config.patch_nums),
        "sampling": made.sampling.to_dict(),
        "checkpoint": made.provenance.get("checkpoint"),
    }


def checkpoint_of(model: str) -> Checkpoint:
    """The embedded demo, or random weights of the official size."""
    from var_export.checkpoint.load import Checkpoint, demo_checkpoint
    from var_export.model.reference import Reference

    if model not in RANDOM:
        return demo_checkpoint()
    reference = Reference.random(RANDOM[model], RANDOM_SEED)
    identity = {"random": RANDOM_SEED, "config": reference.config.to_dict()}
    return Checkpoint(
        config=reference.config,
        sampling=Sampling(),
        labels=None,
        var_state=reference.var.state_dict(),
        vae_state=reference.vae.state_dict(),
        sha256=digest_of(identity),
        sources=(f"random weights, seed {RANDOM_SEED}",),
    )


def plans(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Build the plans of a bundle, or of a part of it, or find them there."""
    folder = plans_folder(job.out, job.step)
    if job.step.form != BOTH:
        tell(f"linking the {job.step.form} form")
        narrow(bundle_folder(job.out, job.step), folder, job.step.form)
    options = PlanOptions(batch=BatchRange.parse(job.step.batch))
    built = build_plans(folder, job.step.backend, options, device=job.device, progress=tell)
    return {
        "path": str(folder),
        "set": built.plans.to_dict(),
        "reused": built.reused,
        "bytes": {graph: plan.size for graph, plan in built.plans.graphs.items()},
        "seconds": {graph: plan.seconds for graph, plan in built.plans.graphs.items()},
        "weights_bytes": Bundle.open(folder, verify=False).weights_bytes(),
        "peak_memory": peak_memory(),
    }


def narrow(source: Path, folder: Path, form: str) -> None:
    """The bundle at `source` with one form only, as hard links at `folder`; plans that are there already stay."""
    manifest = Manifest.read(source)
    key = f"{manifest.build_key}-{form}"
    with contextlib.suppress(BundleError):
        if Bundle.open(folder, verify=False).build_key == key:
            return
    with BundleWriter(folder) as writer:
        for name in needed_files(form, manifest.precision):
            link_or_copy(source / name, writer.folder / name)
        writer.seal(replace(manifest, form=form, build_key=key, plans=(), figures={}))
        writer.publish({form: manifest.figures[form]} if form in manifest.figures else {})
