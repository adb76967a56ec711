"""From a checkpoint to a bundle: golden run, graphs, constants, check, and only then the name.

Stages run one after another and free what they are done with, so that the largest models fit: the reference
is gone before the engines are loaded to check them.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from calib.graphs.emulate import HALF
from calib.graphs.marking import tell_not_finite
from calib.graphs.writing import write_graphs
from calib.half import fitted
from calib.judge.acceptance import Built, check
from calib.keys import FLOAT_BUNDLE, code_digest, versions_of
from engines.bundle.bundle import Bundle, place_of, standing_bundles
from engines.bundle.manifest import GOLDEN, SCHEMA_VERSION, Manifest
from engines.bundle.writer import BundleWriter, existing_bundle
from engines.errors import BundleError, UsageError
from engines.progress import Progress, Steps, silent
from engines.spec import contract
from engines.spec.choices import BUNDLE_FORMS, DEFAULT_MAX_TOP_K, ONNXRUNTIME
from engines.storage import digest_of
from var_export.checkpoint.load import Checkpoint
from var_export.golden import golden_requests, run_reference
from var_export.graphs.autoencoder import Decode, Encode
from var_export.graphs.precision import PRECISIONS, Precision
from var_export.graphs.quantize import Accumulate, Quantizer
from var_export.graphs.step import StepGraph
from var_export.graphs.trace import OPSET, trace
from var_export.graphs.transformer import Cond
from var_export.model.reference import Reference

BUILDERS = ("torch", "onnx", "onnxscript", "onnx_ir", "numpy")
TRACED = contract.graphs_of("stepwise")  # the fused graph is stitched from these


@dataclass(frozen=True, kw_only=True)
class FloatOptions:
    """What a user decides about a build."""

    precision: str = "fp16"
    form: str = "stepwise"
    max_top_k: int = DEFAULT_MAX_TOP_K
    smooth: bool = False
    keep_fp32: tuple[str, ...] = ()
    """Shell patterns over names of layers to compute in FP32, beside those that half precision cannot hold."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; this version builds {', '.join(PRECISIONS)}")
        if self.form not in BUNDLE_FORMS:
            raise UsageError(f"unknown form {self.form!r}; choose stepwise, fused or both")
        if self.max_top_k < 1:
            raise UsageError(f"max_top_k must be 1 or more, got {self.max_top_k}")
        if self.keep_fp32 and self.precision not in HALF:
            raise UsageError(f"a bundle in {self.precision} computes every layer in FP32: there is nothing to keep")


def build(
    checkpoint: Checkpoint,
    out: Path,
    options: FloatOptions,
    *,
    force: bool = False,
    release: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Built:
    """Build a bundle at `out`, or find it there already.

    It appears at `out` whole or not at all; `force` replaces a bundle made from something else. `release` empties the
    checkpoint's state dicts once they are exported, to make room for the check.

    Raises `UsageError` where `out` holds something else, `CheckFailedError` where the built engines miss a
    threshold of `engines.fidelity.checks`: the bundle is not kept then.
    """
    manifest = _manifest(checkpoint, options)
    existing = existing_bundle(out, manifest.build_key, force)
    if existing is not None and existing.build_key == manifest.build_key:
        return Built(existing, True, {})

    with BundleWriter(out) as writer:
        reference = checkpoint.reference()
        twin = _of_same_run(manifest, out)
        if twin is not None:
            progress(f"golden run: taken from the bundle {twin.path}")
            (writer.folder / GOLDEN).write_bytes(twin.held.read(GOLDEN))
        else:
            _write_golden(reference, writer.folder / GOLDEN, manifest, progress)
        quantizer = Quantizer(reference.vae.quantize)
        models = traced_graphs(reference, quantizer, manifest, progress)
        manifest = write_graphs(writer.folder, manifest, models, scale_constants(reference, quantizer), progress)
        del reference, quantizer, models
        if release:
            checkpoint.var_state.clear()
            checkpoint.vae_state.clear()
        gc.collect()
        halved = options.precision in HALF
        made = fitted(writer, manifest, options.keep_fp32, threads, progress) if halved else writer.seal(manifest)
        reports, figures = check(made, threads, progress=progress)
        if not halved or made.for_gpus:
            return Built(writer.publish(figures), False, reports)
        emulated, _ = check(made, threads, emulated=True, progress=progress)
        return Built(writer.publish(figures), False, reports, emulated)


def _manifest(checkpoint: Checkpoint, options: FloatOptions) -> Manifest:
    """What the bundle will be, before any of its files is there."""
    max_top_k = min(options.max_top_k, checkpoint.config.vae.vocab_size)
    versions = versions_of(BUILDERS)
    golden_key = digest_of(
        {
            "checkpoint": checkpoint.sha256,
            "config": checkpoint.config.to_dict(),
            "sampling": checkpoint.sampling.to_dict(),
            "max_top_k": max_top_k,
            "torch": versions["torch"],
            "sources": code_digest(FLOAT_BUNDLE),
        }
    )
    build_key = digest_of(
        {
            "golden": golden_key,
            "options": asdict(options) | {"max_top_k": max_top_k},
            "labels": checkpoint.labels,
            "schema": SCHEMA_VERSION,
            "contract": contract.CONTRACT_VERSION,
            "opset": OPSET,
            "versions": versions,
        }
    )
    return Manifest(
        name=checkpoint.config.name,
        config=checkpoint.config,
        precision=options.precision,
        form=options.form,
        target=ONNXRUNTIME,  # whose graphs every runtime reads, TensorRT's builders too
        max_top_k=max_top_k,
        smooth=options.smooth,
        sampling=checkpoint.sampling,
        labels=checkpoint.labels,
        build_key=build_key,
        golden_key=golden_key,
        provenance={
            "checkpoint": {"files": checkpoint.sources, "sha256": checkpoint.sha256},
            "versions": {**versions, **versions_of(("var-export",)), "opset": OPSET},
        },
    )


def _of_same_run(manifest: Manifest, out: Path) -> Bundle | None:
    """A bundle at `out` or beside it with the golden run that `manifest` is to have: of whatever precision and form."""
    for path in standing_bundles(out.parent):
        with contextlib.suppress(BundleError):
            known = Manifest.read(place_of(path))
            if (known.golden_key, known.smooth) == (manifest.golden_key, manifest.smooth):
                found = Bundle.open(path, verify=False)  # of its files, the golden run alone is taken
                if found.held.sha256(GOLDEN) == found.files[GOLDEN].sha256:
                    return found
    return None


def _write_golden(reference: Reference, file: Path, manifest: Manifest, progress: Progress) -> None:
    """The golden run: images that the PyTorch reference draws, with all that a check compares."""
    classes, seeds = golden_requests(manifest.config)
    line = "golden run: image {} of {} by the PyTorch reference"
    golden = run_reference(
        reference,
        classes,
        seeds,
        manifest.sampling,
        manifest.max_top_k,
        smooth=manifest.smooth,
        report=lambda image: progress(line.format(image + 1, len(classes)), Steps(image, len(classes), slow=True)),
    )
    np.savez_compressed(file, allow_pickle=False, **golden)


def traced_graphs(
    reference: Reference, quantizer: Quantizer, manifest: Manifest, progress: Progress
) -> Iterator[tuple[str, ir.Model]]:
    """The graphs of the stepwise form, each traced when it is asked for."""
    precision, smooth = PRECISIONS[manifest.precision], manifest.smooth
    for number, name in enumerate(TRACED):
        progress(f"graph: {name}", Steps(number, len(TRACED), slow=True))
        module = make_graph(name, reference, quantizer, precision, manifest.max_top_k, smooth=smooth)
        model = trace(module, contract.GRAPHS[name], manifest.config, manifest.precision, smooth=smooth)
        tell_not_finite(model, name)
        del module
        yield name, model
        del model
        gc.collect()


def scale_constants(reference: Reference, quantizer: Quantizer) -> dict[str, NDArray[np.float32]]:
    """What the scale loop feeds to `step` beside the weights, by the names that `engines.draw.loop.Constants` reads."""
    constants = {}
    for scale in range(reference.config.num_scales):
        constants[f"up_{scale}"] = quantizer.up[scale].numpy()
        constants[f"down_{scale}"] = quantizer.down[scale].numpy()
        constants[f"pos_{scale}"] = reference.var.positions(scale).numpy()
    return constants


def make_graph(
    name: str, reference: Reference, quantizer: Quantizer, precision: Precision, max_top_k: int, *, smooth: bool = False
) -> nn.Module:
    """The module that is traced as one graph of `TRACED`."""
    makers: Mapping[str, Callable[[], nn.Module]] = {
        "cond": lambda: Cond(reference.var, precision),
        "step": lambda: StepGraph(reference.var, quantizer, precision, max_top_k, smooth=smooth),
        "decode": lambda: Decode(reference.vae, precision),
        "encode": lambda: Encode(reference.vae, quantizer, precision),
        "accumulate": lambda: Accumulate(quantizer),
    }
    return makers[name]()
