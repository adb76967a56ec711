"""From a float bundle to an INT8 bundle: calibrate, rewrite the graphs, check, and only then the name. Torch-free."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from calib.calibration import INPUT, OUTPUT, Calibration
from calib.graphs.fuse import fuse
from calib.graphs.layers import find_layers
from calib.graphs.weights import WeightFile
from calib.judge.assembly import Built, check
from calib.judge.attribution import blame, describe
from calib.judge.sensitivity import choose_ways
from calib.keys import INT8_BUNDLE, code_digest
from calib.observe.collect import Requests, collect
from calib.rewrite.graphs_of_bundle import Int8Options, rewritten
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import GOLDEN, SCHEMA_VERSION, StoredTensor
from engines.bundle.writer import BundleWriter, existing_bundle
from engines.errors import CheckFailedError, UsageError
from engines.progress import Progress, silent
from engines.spec import choices, contract, policy
from engines.storage import digest_of

VERSIONS = ("onnx", "onnx_ir", "onnxruntime", "numpy")


def calibrate(
    base: Bundle,
    requests: Requests,
    file: Path,
    *,
    reuse_any: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Calibration:
    """The calibration in `file`, made anew where it does not fit.

    `reuse_any`: take what is there whatever its requests were, as long as it is of this model.
    Raises `UsageError` where `file` is of another model, or no calibration.
    """
    if file.exists():
        found = Calibration.load(file)
        found.check_model(base, file)
        if reuse_any or found.requests == requests.describe():
            progress(f"calibration: {file}", None)
            return found
    made = collect(base, requests, resume=file.with_name(f"{file.name}.partial"), threads=threads, progress=progress)
    made.save(file)
    return made


def check_base(base: Bundle, options: Int8Options) -> None:
    """Raises `UsageError` for a bundle that INT8 graphs cannot be made from."""
    if base.precision != options.base_precision or "stepwise" not in base.forms:
        raise UsageError(
            f"INT8 for {options.target} is made from a bundle in {options.base_precision} that has the stepwise form; "
            f"{base.path} is {base.precision}, {base.form}"
        )


def quantize_bundle(
    base: Bundle,
    out: Path,
    options: Int8Options,
    calibrated: Callable[[], Calibration],
    *,
    sensitivity: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Built:
    """Build an INT8 bundle at `out` from a float one.

    Args:
        base: in the precision that `options.base_precision` names, with the stepwise form.
        out: folder of the bundle; it appears there whole or not at all.
        options: target, form, level, bounds, patterns, ranges.
        calibrated: gives the calibration; called once `out` is known to be free.
        sensitivity: file of measured effects, for `options.bounds`; written there, and taken from there.
        force: replace a bundle made from something else.
        threads: of the engines that check the result.
        progress: called with a line and, where it is known, the share that is done.

    Raises `UsageError`, and `CheckFailedError` where the engines miss a threshold, with the layers to blame: the bundle
    is not kept then.

    """
    check_base(base, options)
    if out.exists():  # what is in the way shows now, not after the calibration
        existing_bundle(out, "", force=True)
    graphs, wanted = contract.graphs_of("stepwise"), contract.graphs_of(options.form)
    models = {graph: ir.load(base.graph_path(graph)) for graph in graphs}
    layers = {graph: find_layers(models[graph], graph) for graph in graphs}
    everything = [layer for found in layers.values() for layer in found]
    names = [layer.name for layer in everything]
    ways = policy.assign(names, options.target, options.level, include=options.include, exclude=options.exclude)
    calibration = calibrated()
    calibration.check_model(base)
    versions = {name: importlib.metadata.version(name.replace("_", "-")) for name in VERSIONS}
    build_key = digest_of(
        {
            "base": base.build_key,
            "options": asdict(options),
            "calibration": calibration.digest(),
            "schema": SCHEMA_VERSION,
            "contract": contract.CONTRACT_VERSION,
            "versions": versions,
            "sources": code_digest(INT8_BUNDLE),
        }
    )
    existing = existing_bundle(out, build_key, force)
    if existing is not None and existing.build_key == build_key:
        return Built(existing, True, {})

    if options.bounds:
        ways = choose_ways(base, ways, calibration, options, file=sensitivity, threads=threads, progress=progress)
    static = [layer for layer in everything if ways[layer.name] == policy.STATIC]
    calibration.check_complete([f"{layer.name}:{INPUT}" for layer in static], base.config.num_scales)
    calibration.check_complete([f"{layer.name}:{OUTPUT}" for layer in static if layer.is_conv], 0)
    if not set(calibration.smoothing) <= {layer.name for layer in layers["step"]}:
        raise UsageError("the calibration smooths layers that the model does not have; make it again")
    with BundleWriter(out) as writer:
        shutil.copyfile(base.path / GOLDEN, writer.folder / GOLDEN)
        with WeightFile(writer.folder) as weights:
            for graph, model in rewritten(models, ways, calibration, options):
                progress(f"quantising: {graph}", None)
                weights.store(model)
            arrays = {name: base.constant(name) for name in base.constants}
            if "fused" in wanted:
                progress("graph: fused", None)
                models["fused"] = fuse(base.config, options.base_precision, models, arrays, smooth=base.smooth)
                weights.store(models["fused"])
            constants = {name: StoredTensor(str(a.dtype), a.shape, weights.add(a)) for name, a in arrays.items()}
        for graph in wanted:
            ir.save(models[graph], writer.folder / f"{graph}.onnx")
            onnx.checker.check_model(str(writer.folder / f"{graph}.onnx"))
        models.clear()
        counts = {way: sum(chosen == way for chosen in ways.values()) for way in policy.METHODS}
        made = writer.seal(
            replace(
                base.manifest,
                precision=choices.INT8,
                form=options.form,
                target=options.target,
                build_key=build_key,
                constants=constants,
                plans=(),
                provenance={
                    **base.provenance,
                    "quantisation": {
                        "options": asdict(options),
                        "layers": ways,
                        "counts": counts,
                        "calibration": {"sha256": calibration.digest(), "requests": calibration.requests},
                        "versions": versions | {"var-export": importlib.metadata.version("var-export")},
                    },
                },
            )
        )
        progress("check: engines against the golden run", None)
        try:
            reports = check(made, threads)
        except CheckFailedError as error:
            if not error.parts:
                raise
            blamed = blame(made, error.parts, threads=threads, progress=progress)
            raise CheckFailedError(f"{error}; {describe(blamed)}") from error
        return Built(writer.publish(), False, reports)
