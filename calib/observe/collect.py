"""Activations of the real scale loop, watched as they pass.

    bundle --> graphs with the layers' activations as further outputs --> Pipeline.generate, with guidance, all scales
                                                                              |
                                            Statistics of each tensor <-------+   (nothing else is kept)

The loop, the sampler and the seeds are those that draw images; what runs in place of the bundle's graphs is in
`calib.observe.watching`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.calibration import INPUT, OUTPUT, Calibration
from calib.choose.smoothquant import smoothable, smoothing_factors
from calib.graphs.changed import ChangedGraphs
from calib.graphs.layers import Layer, find_layers, load_graph, read_weight
from calib.observe.watching import watched
from calib.statistics import Statistics
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError
from engines.pictures.images import load_square
from engines.progress import Progress, Steps, silent
from engines.spec.config import ModelConfig
from engines.storage import sha256_of

OBSERVED = ("step", "decode", "encode")
FIRST_SEED = 1_000_000  # far from the seeds of golden runs and of people
SAVE_EVERY = 20.0  # seconds
SMOOTHING_SAMPLES = 8  # that the factors are chosen from, in a pass of their own
SEARCH = "search"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What is drawn to see activations."""

    classes: tuple[int, ...]
    seeds: tuple[int, ...]
    images: tuple[Path, ...] = ()
    """For the encoder; the drawn images where there are none."""
    smooth: str | None = SEARCH
    """`search`, an alpha of 0 to 1, or None."""

    @classmethod
    def spread(
        cls,
        config: ModelConfig,
        samples: int,
        classes: Sequence[int] | None = None,
        images: Sequence[Path] = (),
        smooth: str | None = SEARCH,
    ) -> Requests:
        """`samples` images with seeds of their own, over these classes, or evenly over all. Raises `UsageError`."""
        known = config.transformer.num_classes
        if samples < 1:
            raise UsageError(f"calibration needs 1 sample or more, got {samples}")
        if classes is None:
            classes = [k * known // min(samples, known) for k in range(min(samples, known))]
        drawn = tuple(classes[k % len(classes)] for k in range(samples))
        if len(set(drawn)) == 1 and known > 1:
            raise UsageError(
                f"calibration with class {drawn[0]} alone would fit the ranges to it; take more samples and classes"
            )
        seeds = tuple(FIRST_SEED + k for k in range(samples))
        return cls(classes=drawn, seeds=seeds, images=tuple(images), smooth=smooth)

    def describe(self) -> dict[str, Any]:
        """Plain JSON types; images by their content."""
        return {
            "classes": list(self.classes),
            "seeds": list(self.seeds),
            "images": [sha256_of(image) for image in self.images],
            "smooth": self.smooth,
        }


def collect(
    bundle: Bundle,
    requests: Requests,
    *,
    resume: Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Draw the requested images with a float bundle and gather statistics of every layer's input and output.

    The same requests give the same statistics, interrupted or not: `resume` is where to keep what is gathered so far,
    which is taken up if it is found there, and removed at the end. Raises `UsageError` on activations that are not
    finite and on an image that cannot be read, `BundleError` for a bundle without the stepwise form.
    """
    observed = {graph: find_layers(load_graph(bundle.graph_path(graph)), graph) for graph in OBSERVED}
    beside = bundle.path.parent if resume is None else resume.parent
    beside.mkdir(parents=True, exist_ok=True)
    begun = Calibration(bundle.golden_key, requests.describe())
    calibration = (None if resume is None else Calibration.resume(resume, begun)) or begun
    if requests.smooth is not None and not calibration.smoothing:
        layers = smoothable(observed["step"])
        first = Calibration(begun.model, {})
        samples = min(SMOOTHING_SAMPLES, len(requests.classes))
        _draw(bundle, {"step": layers}, first, range(samples), requests, threads, _named(progress, "smoothing"), beside)
        alpha = None if requests.smooth == SEARCH else float(requests.smooth)
        for layer in layers:
            statistics = first.tensors[f"{layer.name}:{INPUT}"]
            factors = smoothing_factors(read_weight(layer.weight), statistics, alpha)
            calibration.smoothing[layer.name] = np.array([float(f"{x:.6g}") for x in factors], np.float32)
        del first
    jobs = range(calibration.done, len(requests.classes) + len(requests.images))
    _draw(bundle, observed, calibration, jobs, requests, threads, _named(progress, "calibration"), beside, resume)
    for layers in observed.values():
        calibration.check_layers(layers, bundle.config.num_scales)
    if resume is not None:
        resume.unlink(missing_ok=True)
    return calibration


def _draw(
    bundle: Bundle,
    observed: Mapping[str, Sequence[Layer]],
    calibration: Calibration,
    jobs: range,
    requests: Requests,
    threads: int | None,
    progress: Progress,
    beside: Path,
    keep: Path | None = None,
) -> None:
    """Do some of the requests, and add what the layers see to `calibration`; saved in `keep` every now and then."""
    names: dict[str, dict[str, list[Layer]]] = {}  # graph -> tensor -> layers that take it, or that give it
    for graph, layers in observed.items():
        tensors = names.setdefault(graph, {})
        for layer in layers:
            tensors.setdefault(layer.input.name or "", []).append(layer)
            if layer.is_conv:
                tensors.setdefault(layer.node.outputs[0].name or "", []).append(layer)

    def watch(graph: str, scale: int, values: Mapping[str, NDArray[Any]]) -> None:
        for tensor, value in values.items():
            values32: NDArray[np.float32] = np.asarray(value, np.float32)
            for layer in names[graph][tensor]:
                key = f"{layer.name}:{INPUT if layer.input.name == tensor else OUTPUT}"
                factors = calibration.smoothing.get(layer.name)
                try:
                    calibration.tensors.setdefault(key, Statistics()).add(
                        values32 if factors is None else values32 / factors, scale, None if layer.is_conv else -1
                    )
                except ValueError as error:
                    raise UsageError(f"{layer.name} cannot be calibrated: {error}") from error

    progress(f"{len(jobs)} samples", None)
    saved = time.monotonic()
    with ChangedGraphs(bundle, beside=beside) as graphs:
        sessions = watched(graphs, names, bundle.config, watch)
        backend = OnnxRuntimeBackend(threads=threads, sessions=sessions)
        with Pipeline(bundle, backend, form="stepwise", max_batch=1) as pipeline:
            for job in jobs:
                progress(f"sample {job + 1} of {jobs.stop}", Steps(job, jobs.stop))
                if job < len(requests.classes):
                    drawn = pipeline.generate(requests.classes[job], seeds=requests.seeds[job])
                    if not requests.images and "encode" in observed:
                        pipeline.encode(drawn.images)
                else:
                    image = requests.images[job - len(requests.classes)]
                    pipeline.encode(load_square(image, bundle.config.image_size)[None])
                calibration.done = job + 1
                if keep is not None and time.monotonic() - saved > SAVE_EVERY:
                    calibration.save(keep, exact=True)
                    saved = time.monotonic()


def _named(progress: Progress, stage: str) -> Progress:
    return lambda line, done=None: progress(f"{stage}: {line}", done)
