"""From a float bundle to a quantised one: calibrate, rewrite the graphs, check, and only then the name. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.layers import find_layers, load_graph
from calib.graphs.writing import write_graphs
from calib.half import refuse_overflow
from calib.judge.acceptance import Built, Checked, check
from calib.judge.attribution import blame, describe
from calib.judge.search import choose_ways
from calib.keys import QUANTISED_BUNDLE, code_digest, versions_of
from calib.observe.collect import Requests, collect
from calib.observe.reach import measure
from calib.rewrite.integers import rewritten
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import GOLDEN, SCHEMA_VERSION
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


def check_base(base: Bundle, options: QuantisationOptions) -> None:
    """Raises `UsageError` for a bundle that quantised graphs cannot be made from."""
    if base.precision != options.base_precision or "stepwise" not in base.forms:
        raise UsageError(
            f"{options.precision.upper()} for {options.target} is made from a bundle in {options.base_precision} that "
            f"has the stepwise form; {base.path} is {base.precision}, {base.form}"
        )


def quantize_bundle(
    base: Bundle,
    out: Path,
    options: QuantisationOptions,
    calibrated: Callable[[], Calibration],
    *,
    sensitivity: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Built:
    """Build a quantised bundle at `out` from a float one.

    `base` is in the precision that `options.base_precision` names, with the stepwise form. `calibrated` gives the
    calibration, and is called once `out` is known to be free; `sensitivity` is the file of measured effects, for
    `options.bounds`, written there and taken from there. `force` replaces a bundle made from something else.

    Raises `UsageError`, and `CheckFailedError` where the engines miss a threshold, with the layers to blame: the bundle
    is not kept then. It appears whole or not at all.
    """
    check_base(base, options)
    level = options.level or policy.usual_level(base.config, options.precision)
    options = replace(options, level=level)
    if out.exists():  # what is in the way shows now, not after the calibration
        existing_bundle(out, "", force=True)
    models = {graph: load_graph(base.graph_path(graph)) for graph in contract.graphs_of(choices.STEPWISE)}
    layers = [layer for graph, model in models.items() for layer in find_layers(model, graph)]
    names = [layer.name for layer in layers]
    ways = policy.assign(
        names,
        options.target,
        level,
        precision=options.precision,
        adaln=policy.adaln_way(base.config, options.target),
        include=options.include,
        exclude=options.exclude,
    )
    calibration = calibrated()
    calibration.check_model(base)
    build_key = _build_key(base, options, calibration)
    existing = existing_bundle(out, build_key, force)
    if existing is not None and existing.build_key == build_key:
        return Built(existing, True, {})

    if options.bounds:
        ways = choose_ways(base, ways, calibration, options, file=sensitivity, threads=threads, progress=progress)
    calibration.check_layers([layer for layer in layers if ways[layer.name] == policy.STATIC], base.config.num_scales)
    if not set(calibration.smoothing) <= {name for name in names if name.startswith("step/")}:
        raise UsageError("the calibration smooths layers that the model does not have; make it again")
    manifest = replace(
        base.manifest,
        precision=options.precision,
        form=options.form,
        target=options.target,
        build_key=build_key,
        plans=(),
        figures={},
        provenance={**base.provenance, "quantisation": _provenance(options, ways, calibration)},
    )
    with BundleWriter(out) as writer:
        shutil.copyfile(base.path / GOLDEN, writer.folder / GOLDEN)
        constants = {name: base.constant(name) for name in base.constants}
        told = _told(rewritten(models, ways, calibration, options), progress)
        manifest = write_graphs(writer.folder, manifest, told, constants, progress)
        del models, layers, told
        made = writer.seal(manifest)
        if made.for_gpus:
            progress(f"check: what {made.high_precision.upper()} cannot hold in the golden run")
            refuse_overflow(made, measure(made, threads))
        reports, figures = _checked(made, threads, progress)
        return Built(writer.publish(figures), False, reports)


def _build_key(base: Bundle, options: QuantisationOptions, calibration: Calibration) -> str:
    """SHA-256 over all that decides the bytes of the quantised bundle."""
    return digest_of(
        {
            "base": base.build_key,
            "options": asdict(options),
            "calibration": calibration.digest(),
            "schema": SCHEMA_VERSION,
            "contract": contract.CONTRACT_VERSION,
            "versions": versions_of(VERSIONS),
            "sources": code_digest(QUANTISED_BUNDLE),
        }
    )


def _provenance(options: QuantisationOptions, ways: Mapping[str, str], calibration: Calibration) -> dict[str, Any]:
    """How the layers were quantised, for people."""
    return {
        "options": asdict(options),
        "layers": dict(ways),
        "counts": {way: sum(chosen == way for chosen in ways.values()) for way in policy.METHODS},
        "calibration": {"sha256": calibration.digest(), "requests": calibration.requests},
        "versions": versions_of((*VERSIONS, "var-export")),
    }


def _told(models: Iterable[tuple[str, ir.Model]], progress: Progress) -> Iterator[tuple[str, ir.Model]]:
    """The models, with a line about each before it is stored."""
    for graph, model in models:
        progress(f"quantising: {graph}")
        yield graph, model


def _checked(made: Bundle, threads: int | None, progress: Progress) -> Checked:
    """The check of a sealed bundle. Raises `CheckFailedError`, with the layers to blame where they can be told."""
    try:
        return check(made, threads, progress=progress)
    except CheckFailedError as error:
        if not error.parts:
            raise
        blamed = blame(made, error.parts, threads=threads, progress=progress)
        raise CheckFailedError(f"{error}; {describe(blamed)}") from error
