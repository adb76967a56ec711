"""`var-export bench`: how fast a bundle is here, and against PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import command_line, json_out, peak_memory, print_table
from engines.spec.choices import FORMS
from var_export.cli.common import (
    CHECKPOINT,
    PAGE_SUFFIXES,
    POSITIVE,
    Figure,
    bundle_argument,
    check_report,
    html_option,
    json_option,
    mebibytes,
    needs_export_packages,
    open_bundle,
    runtime_options,
    show,
    show_written,
    threads_option,
    torch_threads,
)
from var_export.cli.progress import Progress

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.fidelity.speed import Case, Comparison, Draw, Spread
    from engines.machine import Machine

RANDOM = "random"


def _batches(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is no list of batch sizes such as 1,2,4,8", param=parameter)
    return sizes


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of `var-export bench`, parsed."""

    bundle: Path | None
    batch: tuple[int, ...]
    runs: int
    warmup: int
    cfg: float | None
    form: str | None
    reference: str | None
    vae: str | None
    threads: int | None
    backend: str | None
    provider: str
    device: int
    html: Path | None
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that the command reports."""

    machine: Machine
    threads: int
    runtime: dict[str, Any]
    load_seconds: float
    cases: list[Case]
    peak_memory: int
    """Bytes, of the engines alone."""
    comparison: Comparison | None
    torch_version: str | None


@click.command(short_help="Measure latency, throughput and memory.")
@bundle_argument
@click.option("--batch", default="1,2,4,8", show_default=True, callback=_batches, help="Images at once, to compare.")
@click.option("--runs", "--images", type=POSITIVE, default=5, show_default=True, help="Timed runs of each case.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Runs before, not counted.")
@click.option("--cfg", type=click.FloatRange(min=0), help="Guidance. [default: what the bundle recommends, and none]")
@click.option("--form", type=click.Choice(FORMS), help="[default: stepwise where the bundle has it]")
@click.option(
    "--reference",
    type=CHECKPOINT,
    metavar="CHECKPOINT|demo|random",
    help="Race PyTorch (eager, FP32, same threads) in turns with the engine; random: weights of the same shapes.",
)
@click.option("--vae", type=CHECKPOINT, metavar="FILE", help="The VQ-VAE of --reference, as for build.")
@threads_option
@runtime_options
@html_option
@json_option
@click.pass_context
def bench(context: click.Context, /, **values: Any) -> None:
    """Measure latency per scale, throughput over batch sizes, and memory.

    BUNDLE is the newest in bundles/ by default, else the embedded demo. Close other programs: the figures are
    of the whole machine.
    """
    options = BenchOptions(**values)
    if options.vae and options.reference is None:
        raise click.UsageError("--vae needs --reference")
    if options.html is not None:
        check_report("--html", options.html, PAGE_SUFFIXES)
    bundle = open_bundle(options.bundle)
    with Progress() as progress:
        measured = _measure(options, bundle, progress)
    if options.as_json:
        json_out(_document(options, bundle, measured))
    else:
        _print(options, bundle, measured)
    if options.html is not None:
        from var_export.report.bench import write_bench

        size = write_bench(options.html, bundle, measured, reference=options.reference, command=command_line(context))
        show_written(options.html, size)


def _measure(options: BenchOptions, bundle: Bundle, progress: Progress) -> Measured:
    from engines import backends
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.speed import Bench
    from engines.machine import machine

    here = machine()
    threads = options.threads or here.physical_cores
    progress(f"loading {bundle.path}")
    before = progress.seconds
    backend = backends.for_bundle(
        bundle,
        options.backend,
        provider=options.provider,
        threads=options.threads,
        device=options.device,
        tell=show,
    )
    with Pipeline(bundle, backend, form=options.form, max_batch=max(options.batch)) as pipeline:
        load_seconds = progress.seconds - before
        strength = bundle.sampling.cfg if options.cfg is None else options.cfg
        cfgs = (strength,) if options.cfg is not None or strength == 0 else (strength, 0.0)
        timer = Bench(pipeline, warmup=options.warmup, progress=progress)
        cases = timer.measure(batches=options.batch, cfgs=cfgs, runs=options.runs)
        peak = peak_memory()
        comparison, torch_version = None, None
        if options.reference is not None:
            draw, torch_version = _reference(options, bundle, strength, progress)
            with torch_threads(threads):
                comparison = timer.compare(draw, cfg=strength, pairs=options.runs)
        runtime = pipeline.describe_runtime() | {"threads": threads}
    return Measured(
        machine=here,
        threads=threads,
        runtime=runtime,
        load_seconds=load_seconds,
        cases=cases,
        peak_memory=peak,
        comparison=comparison,
        torch_version=torch_version,
    )


def _reference(options: BenchOptions, bundle: Bundle, cfg: float, progress: Progress) -> tuple[Draw, str]:
    progress("loading the PyTorch reference")
    with needs_export_packages("--reference"):
        import torch

        from var_export import live
        from var_export.model.reference import Reference
    assert options.reference is not None
    if options.reference == RANDOM:
        reference = Reference.random(bundle.config)
    else:
        reference = live.make_reference(live.checkpoint_for(bundle, options.reference, vae=options.vae))
    return live.draw_with(reference, bundle, cfg=cfg), torch.__version__


def _print(options: BenchOptions, bundle: Bundle, measured: Measured) -> None:
    first, runtime = measured.cases[0], measured.runtime
    show(f"machine:  {measured.machine}, load {measured.machine.load:.1f} before", to_stdout=True)
    show(f"bundle:   {bundle.path}: {bundle.name}, {bundle.precision}, {runtime['form']}", to_stdout=True)
    show(
        f"runtime:  {runtime['backend']} {runtime[runtime['backend']]}, {runtime['provider']}, {_on(measured)}, "
        f"loaded in {measured.load_seconds:.1f} s",
        to_stdout=True,
    )
    show(f"sampling: {bundle.sampling.fitted(bundle.max_top_k).describe()}", to_stdout=True)
    show(f"\nlatency in ms, batch {first.batch}, {_guidance(first.cfg)}, {first.runs} runs", to_stdout=True)
    print_table(_latency(bundle, first), ("", "p50", "p90", "p99", "min"))
    show("\nthroughput", to_stdout=True)
    rows = [
        (c.batch, _guidance(c.cfg), c.runs, Figure(1e3 * c.total.p50, ".1f"), Figure(c.images_per_second, ".2f"))
        for c in measured.cases
    ]
    print_table(rows, ("batch", "guidance", "runs", "ms p50", "images/s"))
    show(f"\npeak memory: {mebibytes(measured.peak_memory)}", to_stdout=True)
    if measured.comparison is not None:
        _print_comparison(options, measured, measured.comparison, first.cfg)


def _latency(bundle: Bundle, case: Case) -> list[tuple[object, ...]]:
    def row(name: str, spread: Spread) -> tuple[object, ...]:
        values = (spread.p50, spread.p90, spread.p99, spread.min)
        return (name, *(Figure(1e3 * value, ".2f") for value in values))

    if len(case.scales) == 1:
        return [row("fused graph", case.scales[0]), row("outside the engine", case.outside), row("total", case.total)]
    sides = bundle.config.patch_nums
    return [
        row("cond", case.cond),
        *(row(f"scale {s} ({sides[s]}x{sides[s]})", spread) for s, spread in enumerate(case.scales)),
        row("decode", case.decode),
        row("outside the engines", case.outside),
        row("total", case.total),
    ]


def _print_comparison(options: BenchOptions, measured: Measured, race: Comparison, cfg: float) -> None:
    ratio = race.ratio
    show(
        f"\nagainst PyTorch {measured.torch_version} (eager FP32, {options.reference}), batch 1, {_guidance(cfg)}, "
        f"{_threads(measured)}, {len(race.ratios)} pairs in turns",
        to_stdout=True,
    )
    rows = [
        (name, *(Figure(1e3 * value, ".1f") for value in (spread.p50, spread.min, spread.max)))
        for name, spread in (("PyTorch", race.reference), ("engine", race.engine))
    ]
    print_table(rows, ("", "ms p50", "min", "max"))
    alike = "" if options.reference == RANDOM else f"; {race.tokens_alike:.2%} of the tokens alike"
    show(
        f"the engine takes {ratio.p50:.2f} of PyTorch's time (pair by pair {ratio.min:.2f} to {ratio.max:.2f}){alike}",
        to_stdout=True,
    )


def _on(measured: Measured) -> str:
    """The GPU, or how many threads of the CPU."""
    gpu = measured.runtime.get("gpu")
    return str(gpu) if gpu else _threads(measured)


def _threads(measured: Measured) -> str:
    return f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"


def _guidance(cfg: float) -> str:
    return f"guidance {cfg:g}" if cfg else "no guidance"


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
        "reference": None
        if race is None
        else {"weights": options.reference, "torch": measured.torch_version, **race.to_dict()},
    }
