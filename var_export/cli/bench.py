"""`var-export bench`: how fast a bundle is here, alone and against rivals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    show,
)
from engines.cli.progress import StageClock
from engines.spec.choices import FORMS
from engines.words import counted, guidance, mebibytes
from var_export.cli.common import (
    CheckpointParts,
    bundle_argument,
    html_option,
    open_bundle,
    sizes_option,
    tell_page,
)
from var_export.cli.rivals import Races, Rivals

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.fidelity.speed import Comparison, Measured


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


@click.command()
@bundle_argument
@option_group("options", BenchOptions)
@option_group("rivals", Rivals)
@option_group("runtime", Runtime, without=("backend",))
@html_option
@json_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    bundle: Path | None,
    options: BenchOptions,
    rivals: Rivals,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure latency per scale, throughput over batch sizes, and memory.

    BUNDLE is the newest in bundles/ by default, else the embedded demo. Close other programs: the figures are
    of the whole machine.
    """
    from engines.fidelity.speed import RANDOM

    if rivals.reference in (None, RANDOM):
        refuse(context, CheckpointParts, "needs --reference with a checkpoint")
    if rivals.reference is None:
        refuse(context, ("reference_dtypes",), "needs --reference")
    opened = open_bundle(bundle)
    with StageClock() as progress:
        measured = _measure(options, rivals, runtime, opened, progress)
    if as_json:
        json_out(_document(options, opened, measured))
    else:
        _print(opened, measured)
    if html is not None:
        from var_export.report.bench import write_bench

        tell_page(html, write_bench(html, opened, measured, command_line(context)))


def _measure(options: BenchOptions, rivals: Rivals, runtime: Runtime, bundle: Bundle, progress: StageClock) -> Measured:
    from engines.fidelity.speed import Bench, Measured
    from engines.machine import machine

    here = machine()
    threads = runtime.threads or here.physical_cores
    races = Races(rivals=rivals, runtime=runtime, bundle=bundle, form=options.form, max_batch=max(options.batch))
    races.check()
    progress(f"loading {bundle.path}")
    before = progress.seconds
    with races.engine() as pipeline:
        load_seconds = progress.seconds - before
        strength = bundle.sampling.cfg if options.cfg is None else options.cfg
        cfgs = (strength,) if options.cfg is not None or strength == 0 else (strength, 0.0)
        timer = Bench(pipeline, warmup=options.warmup, progress=progress)
        timer.check_ends(rivals.cfg_scales, strength)
        cases = timer.measure(batches=options.batch, cfgs=cfgs, runs=options.runs)
        peak = peak_memory()
        comparisons = tuple(races.run(timer, cfg=strength, pairs=options.runs, progress=progress))
        ran_by = pipeline.describe_runtime() | {"threads": threads}
    return Measured(
        machine=here,
        threads=threads,
        runtime=ran_by,
        load_seconds=load_seconds,
        cases=cases,
        peak_memory=peak,
        comparisons=comparisons,
    )


def _print(bundle: Bundle, measured: Measured) -> None:
    from engines.fidelity.speed import runtime_title

    first, runtime = measured.cases[0], measured.runtime
    print_facts(
        {
            "machine": f"{measured.machine}, load {measured.machine.load:.1f} before",
            "bundle": f"{bundle.path}: {bundle.name}, {bundle.precision}, {runtime['form']}",
            "runtime": f"{runtime_title(runtime)}, "
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
    for comparison in measured.comparisons:
        _print_comparison(measured, comparison)
    if measured.doubts():
        show(f"uncertain: {'; '.join(measured.doubts())}; close other programs, or take more --runs")


def _print_comparison(measured: Measured, comparison: Comparison) -> None:
    race, ratio = comparison.race, comparison.race.ratio
    show(
        f"\nagainst {comparison.title}, batch 1, {guidance(measured.cases[0].cfg)}, "
        f"{counted(measured.threads, 'thread')}, {len(race.ratios)} pairs in turns"
    )
    rows = [
        (name, *(Figure(1e3 * value, ".1f") for value in (spread.p50, spread.min, spread.max)))
        for name, spread in ((comparison.name, race.rival), (comparison.engine, race.engine))
    ]
    print_table(rows, ("", "ms p50", "min", "max"))
    if comparison.ended is not None:
        show(
            f"{comparison.engine} takes {ratio.p50:.2f} of the time (pair by pair {ratio.min:.2f} to {ratio.max:.2f}); "
            f"{comparison.ended}"
        )
        return
    alike = f"; {race.tokens_alike:.2%} of the tokens alike" if comparison.same_weights else ""
    show(
        f"the engine takes {ratio.p50:.2f} of {comparison.name}'s time "
        f"(pair by pair {ratio.min:.2f} to {ratio.max:.2f}){alike}"
    )


def _document(options: BenchOptions, bundle: Bundle, measured: Measured) -> dict[str, Any]:
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
            "sampling": bundle.sampling.to_dict(),
        },
        "load_seconds": measured.load_seconds,
        "cases": [case.to_dict() for case in measured.cases],
        "peak_memory_bytes": measured.peak_memory,
        "doubts": measured.doubts(),
        "comparisons": [comparison.to_dict() for comparison in measured.comparisons],
    }
