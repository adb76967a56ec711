"""`var-export bench`: how fast a bundle is here, and against PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import (
    POSITIVE,
    Figure,
    Runtime,
    command_line,
    filled_by,
    json_option,
    json_out,
    option,
    option_group,
    peak_memory,
    print_facts,
    print_table,
    refuse,
    runtime_options,
    show,
)
from engines.cli.progress import StageClock
from engines.spec.choices import FORMS
from engines.words import counted, guidance, mebibytes
from var_export.cli.common import (
    CHECKPOINT,
    CheckpointParts,
    bundle_argument,
    html_option,
    needs_export_packages,
    open_bundle,
    sizes_option,
    tell_page,
    torch_threads,
)

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.fidelity.speed import Draw, Measured


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `var-export bench` is to measure."""

    batch: tuple[int, ...] = filled_by(sizes_option("1,2,4,8", "Images at once, to compare."))
    runs: int = option("--runs", "--images", type=POSITIVE, default=5, help="Timed runs of each case.")
    warmup: int = option(type=click.IntRange(min=0), default=1, help="Runs before, not counted.")
    cfg: float | None = option(
        type=click.FloatRange(min=0), help="Guidance. [default: what the bundle recommends, and none]"
    )
    form: str | None = option(type=click.Choice(FORMS), help="[default: stepwise where the bundle has it]")
    reference: str | None = option(
        type=CHECKPOINT,
        metavar="CHECKPOINT|demo|random",
        help="Race PyTorch (eager, FP32, same threads) in turns with the engine; random: weights of the same shapes.",
    )
    parts: CheckpointParts = filled_by(
        option_group(
            "parts",
            CheckpointParts,
            vae="The VQ-VAE of --reference, as for build.",
            config="The config.json of --reference, as for build.",
        )
    )


@click.command()
@bundle_argument
@option_group("options", BenchOptions)
@runtime_options
@html_option
@json_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    bundle: Path | None,
    options: BenchOptions,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure latency per scale, throughput over batch sizes, and memory.

    BUNDLE is the newest in bundles/ by default, else the embedded demo. Close other programs: the figures are
    of the whole machine.
    """
    from engines.fidelity.speed import RANDOM

    if options.reference in (None, RANDOM):
        refuse(context, CheckpointParts, "needs --reference with a checkpoint")
    opened = open_bundle(bundle)
    with StageClock() as progress:
        measured = _measure(options, runtime, opened, progress)
    if as_json:
        json_out(_document(options, opened, measured))
    else:
        _print(opened, measured)
    if html is not None:
        from var_export.report.bench import write_bench

        tell_page(html, write_bench(html, opened, measured, command_line(context)))


def _measure(options: BenchOptions, runtime: Runtime, bundle: Bundle, progress: StageClock) -> Measured:
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.speed import Bench, Measured
    from engines.machine import machine

    here = machine()
    threads = runtime.threads or here.physical_cores
    progress(f"loading {bundle.path}")
    before = progress.seconds
    with Pipeline(bundle, runtime.open(bundle), form=options.form, max_batch=max(options.batch)) as pipeline:
        load_seconds = progress.seconds - before
        strength = bundle.sampling.cfg if options.cfg is None else options.cfg
        cfgs = (strength,) if options.cfg is not None or strength == 0 else (strength, 0.0)
        timer = Bench(pipeline, warmup=options.warmup, progress=progress)
        cases = timer.measure(batches=options.batch, cfgs=cfgs, runs=options.runs)
        peak = peak_memory()
        comparison, torch_version = None, None
        if options.reference is not None:
            draw, torch_version = _reference(options.reference, options.parts, bundle, strength, progress)
            with torch_threads(threads):
                comparison = timer.race(draw, cfg=strength, pairs=options.runs)
        ran_by = pipeline.describe_runtime() | {"threads": threads}
    return Measured(
        machine=here,
        threads=threads,
        runtime=ran_by,
        load_seconds=load_seconds,
        cases=cases,
        peak_memory=peak,
        comparison=comparison,
        reference=options.reference,
        torch_version=torch_version,
    )


def _reference(
    weights: str, parts: CheckpointParts, bundle: Bundle, cfg: float, progress: StageClock
) -> tuple[Draw, str]:
    """What draws an image with the PyTorch reference, and the version of PyTorch."""
    progress("loading the PyTorch reference")
    with needs_export_packages("--reference"):
        import torch

        from var_export import live
        from var_export.model.reference import Reference
    from engines.fidelity.speed import RANDOM

    if weights == RANDOM:
        reference = Reference.random(bundle.config)
    else:
        reference = live.checkpoint_for(bundle, weights, **vars(parts)).reference()
    sampling = replace(bundle.sampling, cfg=cfg)
    return live.draw_with(reference, sampling, bundle.max_top_k), torch.__version__


def _print(bundle: Bundle, measured: Measured) -> None:
    first, runtime = measured.cases[0], measured.runtime
    print_facts(
        {
            "machine": f"{measured.machine}, load {measured.machine.load:.1f} before",
            "bundle": f"{bundle.path}: {bundle.name}, {bundle.precision}, {runtime['form']}",
            "runtime": f"{runtime['backend']} {runtime[runtime['backend']]}, {runtime['provider']}, "
            f"{runtime.get('gpu') or counted(measured.threads, 'thread')}, loaded in {measured.load_seconds:.1f} s",
            "sampling": bundle.sampling.fitted(bundle.max_top_k).describe(),
        }
    )
    show(f"\nlatency in ms, batch {first.batch}, {guidance(first.cfg)}, {first.runs} runs")
    stages: list[tuple[object, ...]] = [
        (name, *(Figure(1e3 * value, ".2f") for value in each.columns().values()))
        for name, each in first.stages(bundle.config.patch_nums)
    ]
    print_table(stages, ("", *first.total.columns()))
    show("\nthroughput")
    rows = [
        (c.batch, guidance(c.cfg), c.runs, Figure(1e3 * c.total.p50, ".1f"), Figure(c.images_per_second, ".2f"))
        for c in measured.cases
    ]
    print_table(rows, ("batch", "guidance", "runs", "ms p50", "images/s"))
    show(f"\npeak memory: {mebibytes(measured.peak_memory)}")
    _print_comparison(measured)
    if measured.doubts():
        show(f"uncertain: {'; '.join(measured.doubts())}; close other programs, or take more --runs")


def _print_comparison(measured: Measured) -> None:
    from engines.fidelity.speed import RANDOM

    race, weights = measured.comparison, measured.reference
    if race is None:
        return
    ratio = race.ratio
    show(
        f"\nagainst PyTorch {measured.torch_version} (eager FP32, {weights}), batch 1, "
        f"{guidance(measured.cases[0].cfg)}, {counted(measured.threads, 'thread')}, {len(race.ratios)} pairs in turns"
    )
    rows = [
        (name, *(Figure(1e3 * value, ".1f") for value in (spread.p50, spread.min, spread.max)))
        for name, spread in (("PyTorch", race.reference), ("engine", race.engine))
    ]
    print_table(rows, ("", "ms p50", "min", "max"))
    alike = "" if weights == RANDOM else f"; {race.tokens_alike:.2%} of the tokens alike"
    show(f"the engine takes {ratio.p50:.2f} of PyTorch's time (pair by pair {ratio.min:.2f} to {ratio.max:.2f}){alike}")


def _document(options: BenchOptions, bundle: Bundle, measured: Measured) -> dict[str, Any]:
    race = measured.comparison
    return {
        "machine": asdict(measured.machine),
        "bundle": {
            "path": str(bundle.path),
            "name": bundle.name,
            "precision": bundle.precision,
            "build_key": bundle.build_key,
        },
        "runtime": measured.runtime,
        "settings": {
            "batch": list(options.batch),
            "runs": options.runs,
            "warmup": options.warmup,
            "sampling": asdict(bundle.sampling),
        },
        "load_seconds": measured.load_seconds,
        "cases": [case.to_dict() for case in measured.cases],
        "peak_memory_bytes": measured.peak_memory,
        "doubts": measured.doubts(),
        "reference": None
        if race is None
        else {"weights": measured.reference, "torch": measured.torch_version, **race.to_dict()},
    }
