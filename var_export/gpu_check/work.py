"""The steps that check and time engines. Every result is plain JSON types."""

from __future__ import annotations

import contextlib
import gc
import time
from typing import Any

from engines.backends.cuda import Cuda
from engines.cli.common import peak_memory
from engines.draw.pipeline import Pipeline
from engines.errors import OutOfMemoryError
from engines.fidelity import checks
from engines.fidelity.speed import Bench, Case
from engines.progress import Progress
from engines.spec.choices import ONNXRUNTIME
from var_export.gpu_check import hardware
from var_export.gpu_check.cases import StepJob

LONGEST = 60.0  # seconds, about, for one batch size beyond the first
FEWEST = 3  # runs of it, whatever they take


def verify(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Hold the engines against the golden run of their bundle."""
    tell("loading the engines")
    start = time.perf_counter()
    with hardware.open_pipeline(job, max_batch=1) as pipeline:
        pipeline.generate([0], seeds=[0])
        first_seconds = time.perf_counter() - start
        tell("against the golden run")
        return checks.verify(pipeline, pipeline.bundle.golden).to_dict() | {
            "runtime": pipeline.describe_runtime(),
            "first_image_seconds": first_seconds,
        }


def bench(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Latency per scale, throughput, memory of the GPU."""
    with contextlib.closing(Cuda(job.device)) as gauge:
        before = gauge.free_memory()
        tell("loading the engines")
        start = time.perf_counter()
        with hardware.open_pipeline(job, max_batch=max(job.batches)) as pipeline:
            loaded = before - gauge.free_memory()
            pipeline.generate([0], seeds=[0])
            first_seconds = time.perf_counter() - start
            timer = Bench(pipeline, warmup=hardware.WARMUP, progress=tell)
            cases, problems = _timed_cases(job, pipeline, timer)
            return {
                "runtime": pipeline.describe_runtime(),
                "first_image_seconds": first_seconds,
                "engine_batch": pipeline.max_batch,
                "cases": [case.to_dict() for case in cases],
                "problems": problems,
                "gpu_memory": {"loaded": loaded, "after": before - gauge.free_memory(), "total": gauge.total_memory},
                "cuda_graphs": None if job.step.backend == ONNXRUNTIME else count_graphs(),
                "peak_memory": peak_memory(),
                "gpus_after": hardware.gpus(),
            }


def _timed_cases(job: StepJob, pipeline: Pipeline, timer: Bench) -> tuple[list[Case], list[dict[str, Any]]]:
    """Every batch size with and without guidance; one that the GPU has no memory for is a finding, not a failure."""
    strength = pipeline.sampling.cfg
    cases: list[Case] = []
    problems: list[dict[str, Any]] = []
    for batch in job.batches:
        for cfg in dict.fromkeys((strength, 0.0)):
            runs = job.runs
            if cases:
                image = cases[0].total.p50 / cases[0].batch
                runs = min(runs, max(FEWEST, int(LONGEST / (image * batch))))
            try:
                cases += timer.measure(batches=(batch,), cfgs=(cfg,), runs=runs)
            except OutOfMemoryError as error:
                problems.append({"batch": batch, "cfg": cfg, "problem": str(error)})
    if not cases:
        raise OutOfMemoryError("; ".join(problem["problem"] for problem in problems))
    return cases, problems


def count_graphs() -> dict[str, int]:
    """Prepared calls that are alive, and how many of them are launched as CUDA graphs."""
    from engines.backends.cuda import Graph
    from engines.backends.tensorrt.engine import TensorRTCall

    alive = [type(item) for item in gc.get_objects()]
    return {"calls": alive.count(TensorRTCall), "graphs": alive.count(Graph)}
