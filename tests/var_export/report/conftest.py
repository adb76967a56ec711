"""Pages to look at: of a tiny bundle for `verify`, of made-up figures for `bench` and `sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from calib.judge.effects import Effect, Sensitivity
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.fidelity.checks import Runs, verify
from engines.fidelity.speed import RANDOM, Case, Comparison, Measured, Race, Spread
from engines.machine import machine
from engines.spec.policy import PER_BLOCK, PER_TOKEN, STATIC
from tests.bundles import shared_bundle
from tests.var_export.report.reading import NASTY


@pytest.fixture(scope="session")
def tiny() -> Bundle:
    """Five classes with names that a page must escape; both forms."""
    bundle = Bundle.open(shared_bundle("tiny-fp32"))
    return Bundle(bundle.path, replace(bundle.manifest, labels=NASTY), bundle.held)


def evidence_of(bundle: Bundle, form: str) -> Any:
    from var_export.report.verify import Verified

    runs: list[Runs] = []
    with Pipeline.load(bundle.path, form=form, threads=1, max_batch=1, check="never") as pipeline:
        report = verify(pipeline, bundle.golden, on_runs=runs.append)
        runtime = pipeline.describe_runtime()
    return Verified(
        bundle=bundle,
        golden=bundle.golden,
        against="the run of the PyTorch reference stored in the bundle",
        report=report,
        runs=runs[0],
        runtime=runtime,
        machine=machine(),
        peak_memory=1 << 27,
        blamed=(),
        command=["var-export", "verify", "a bundle", "--html", "page.html"],
    )


@pytest.fixture(scope="session")
def stepwise(tiny) -> Any:
    """Evidence of a bundle that passes."""
    return evidence_of(tiny, "stepwise")


@pytest.fixture(scope="session")
def fused(tiny) -> Any:
    return evidence_of(tiny, "fused")


@pytest.fixture(scope="session")
def failing(stepwise) -> Any:
    """The same, with an engine that is far off in figures and pictures, and layers to blame for it."""
    from calib.judge.attribution import Blame

    report = replace(stepwise.report, kl=0.5, max_logit_error=9.0, image_psnr=12.0)
    inverted = replace(stepwise.runs.forced, images=255 - stepwise.runs.forced.images)
    return replace(
        stepwise,
        report=report,
        runs=replace(stepwise.runs, forced=inverted),
        blamed=[
            Blame("transformer", "fc1", "KL", 0.5, 0.01, False),
            Blame("decoder", "up.0", "PSNR", 12.0, 50.0, True),
        ],
    )


def spread(middle: float) -> Spread:
    return Spread(middle * 0.9, middle, middle * 1.2, middle * 1.3, middle * 1.4)


@pytest.fixture
def measured() -> Any:
    """Two batch sizes with and without guidance, and a race."""
    cases = [
        Case(
            batch, cfg, 5, spread(1e-3), tuple(spread(s * 1e-3 * batch) for s in (1, 2, 4, 6)), spread(5e-3),
            spread(1e-4), spread(0.0131 * batch),
        )
        for batch in (1, 4)
        for cfg in (4.0, 0.0)
    ]  # fmt: skip
    return Measured(
        machine=machine(),
        threads=2,
        runtime={
            "backend": "onnxruntime",
            "onnxruntime": "1.0",
            "provider": "CPUExecutionProvider",
            "form": "stepwise",
        },
        load_seconds=0.5,
        cases=cases,
        peak_memory=1 << 28,
        comparisons=(
            Comparison(
                "PyTorch",
                f"PyTorch 2.0 (eager FP32, weights: {RANDOM})",
                False,
                Race(spread(0.2), spread(0.05), (0.2, 0.25, 0.3), 0.5),
            ),
        ),
    )


@pytest.fixture
def table() -> Sensitivity:
    """Layers of all three parts, in all ways, more than are shown at once."""
    ways = (PER_BLOCK, PER_TOKEN, STATIC)
    step = [
        Effect(f"step/blocks.{block}.{role}", role, way, 1e-3, kl=1e-6 * 3**place * (block + 1), top1=0.99)
        for block in range(4)
        for role in ("qkv", "fc1")
        for place, way in enumerate(ways)
    ]
    decode = [Effect(f"decode/up.0.block.{n}.conv1", "conv", STATIC, 1e-4, psnr=30.0 + n) for n in range(3)]
    decode.append(Effect("decode/conv_out", "conv", STATIC, 1e-4))
    encode = [Effect("encode/down.3.block.0.nin_shortcut", "conv", STATIC, 1e-4, reconstruction_loss=-0.1)]
    return Sensitivity("key", float_kl=1e-12, effects=[*step, *decode, *encode])


@dataclass(frozen=True)
class Pages:
    """Files, by name."""

    verify: Any
    failed: Any
    fused: Any
    bench: Any
    sensitivity: Any


@pytest.fixture
def pages(tmp_path, tiny, stepwise, failing, fused, measured, table) -> Pages:
    from var_export.report import bench, sensitivity
    from var_export.report.verify import write_verify

    made = Pages(*(tmp_path / f"{name}.html" for name in Pages.__dataclass_fields__))
    for file, evidence in ((made.verify, stepwise), (made.failed, failing), (made.fused, fused)):
        write_verify(file, evidence)
    bench.write_bench(made.bench, tiny, measured, ["var-export", "bench"])
    more = {"how": ("INT8", "onnxruntime"), "kept_in": tmp_path / "t", "machine": machine(), "command": ["var-export"]}
    sensitivity.write_sensitivity(made.sensitivity, tiny, table, **more)
    return made
