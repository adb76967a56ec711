"""`var-export bench`: how fast a bundle is here, and against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    show,
)
from engines.cli.progress import StageClock
from engines.errors import UsageError
from engines.spec.choices import BACKENDS, FORMS, ONNXRUNTIME, OPENVINO
from engines.words import counted, guidance, mebibytes
from var_export.cli.common import (
    CHECKPOINT,
    FOLDER,
    CheckpointParts,
    bundle_argument,
    choices_option,
    html_option,
    needs_export_packages,
    numbers_option,
    open_bundle,
    sizes_option,
    tell_page,
    torch_threads,
)

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.speed import Bench, Comparison, Draw, Measured

TORCH_TYPES = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `var-export bench` is to measure."""

    batch: tuple[int, ...] = filled_by(sizes_option("1,2,4,8", "Images at once, to compare."))
    runs: int = option("--runs", "--images", type=POSITIVE, default=5, help="Timed runs of each case.")
    warmup: int = option(type=click.IntRange(min=0), default=1, help="Runs before, not counted.")
    cfg: float | None = option(
        type=click.FloatRange(min=0), help="Guidance. [default: what the bundle recommends, and none]"
    )
    cfg_scales: tuple[int, ...] = filled_by(
        numbers_option(
            "--cfg-scales",
            "numbers of scales",
            "9,8",
            "Race images guided in so many first scales in turns with those guided in all, and say how alike they are.",
        )
    )
    form: str | None = option(type=click.Choice(FORMS), help="[default: stepwise where the bundle has it]")
    reference: str | None = option(
        type=CHECKPOINT,
        metavar="CHECKPOINT|demo|random",
        help="Race PyTorch (eager, same threads) in turns with the engine; random: weights of the same shapes.",
    )
    reference_dtypes: tuple[str, ...] = filled_by(
        choices_option(
            "--reference-dtype",
            "reference_dtypes",
            TORCH_TYPES,
            "What PyTorch computes in: FP32, or autocast to BF16.",
            default=TORCH_TYPES[0],
        )
    )
    backends: tuple[str, ...] = filled_by(
        choices_option(
            "--backend",
            "backends",
            BACKENDS,
            "What computes; further ones race in turns with it. [default: of the bundle's plans, else onnxruntime]",
        )
    )
    against: tuple[Path, ...] = option(
        type=FOLDER, multiple=True, metavar="BUNDLE", help="Race another bundle of the same model in turns; repeatable."
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
@option_group("runtime", Runtime, without=("backend",))
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
    if options.reference is None:
        refuse(context, ("reference_dtypes",), "needs --reference")
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
    from engines.fidelity.speed import Bench, Measured
    from engines.machine import machine

    here = machine()
    threads = runtime.threads or here.physical_cores
    _check_rivals(options, runtime, bundle)
    progress(f"loading {bundle.path}")
    before = progress.seconds
    with _opened(bundle, runtime, options, options.backends[0] if options.backends else None) as pipeline:
        load_seconds = progress.seconds - before
        strength = bundle.sampling.cfg if options.cfg is None else options.cfg
        cfgs = (strength,) if options.cfg is not None or strength == 0 else (strength, 0.0)
        timer = Bench(pipeline, warmup=options.warmup, progress=progress)
        timer.check_ends(options.cfg_scales, strength)
        cases = timer.measure(batches=options.batch, cfgs=cfgs, runs=options.runs)
        peak = peak_memory()
        comparisons = tuple(_races(timer, options, runtime, bundle, strength, progress))
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


def _opened(bundle: Bundle, runtime: Runtime, options: BenchOptions, backend: str | None) -> Pipeline:
    """A pipeline on a backend, with those of the options that it has; several backends share one command line."""
    from engines.draw.pipeline import Pipeline

    opened = _suited(runtime, options, backend).open(bundle)
    try:
        return Pipeline(bundle, opened, form=options.form, max_batch=max(options.batch))
    except BaseException:
        opened.close()
        raise


def _suited(runtime: Runtime, options: BenchOptions, backend: str | None) -> Runtime:
    if len(options.backends) < 2:
        return replace(runtime, backend=backend)
    named = isinstance(runtime.device, str)
    return replace(
        runtime,
        backend=backend,
        provider=runtime.provider if backend == ONNXRUNTIME else "cpu",
        precision_hint=runtime.precision_hint if backend == OPENVINO else None,
        device=runtime.device if named == (backend == OPENVINO) else None,
    )


def _check_rivals(options: BenchOptions, runtime: Runtime, bundle: Bundle) -> None:
    """Find out whether all can race before anything is timed. Raises `UsageError`, `BackendError`, `BundleError`."""
    from engines.bundle.bundle import Bundle

    if len(options.backends) > 1:
        named = isinstance(runtime.device, str)
        of_onnxruntime, of_openvino = runtime.provider != "cpu", named or runtime.precision_hint is not None
        for asked, owner, flag in (
            (of_onnxruntime, ONNXRUNTIME, "--provider"),
            (of_openvino, OPENVINO, "--device" if named else "--precision-hint"),
        ):
            if asked and owner not in options.backends:
                raise UsageError(f"{flag} is an option of {owner}, which does not race: add it to --backend")
    for backend in options.backends[1:]:
        _suited(runtime, options, backend).open(bundle).close()
    for path in options.against:
        given, wanted = (each.config.to_dict() | {"name": ""} for each in (Bundle.open(path), bundle))
        if given != wanted:
            differing = ", ".join(key for key in wanted if given[key] != wanted[key])
            raise UsageError(f"{path} is of another model than {bundle.path}: its {differing} differ")


def _races(
    timer: Bench, options: BenchOptions, runtime: Runtime, bundle: Bundle, cfg: float, progress: StageClock
) -> Iterator[Comparison]:
    """One race after the other, each rival in turns with the engine; of the rivals, one is loaded at a time."""
    from engines.bundle.bundle import Bundle
    from engines.fidelity.speed import RANDOM, Comparison
    from engines.machine import machine

    def race(name: str, title: str, draw: Draw, *, same_weights: bool = True) -> Comparison:
        return Comparison(name, title, same_weights, timer.race(draw, cfg=cfg, pairs=options.runs))

    for scales in options.cfg_scales:
        yield timer.end_early(scales, cfg=cfg, pairs=options.runs)
    for backend in options.backends[1:]:
        progress(f"loading {bundle.path} for {backend}")
        with _opened(bundle, runtime, options, backend) as rival:
            yield race(backend, runtime_title(rival.describe_runtime()), _drawing(rival, cfg))
    for path in options.against:
        progress(f"loading {path}")
        other = Bundle.open(path)
        with _opened(other, runtime, options, options.backends[0] if options.backends else None) as rival:
            title = f"{path} ({other.precision}, {runtime_title(rival.describe_runtime())})"
            same = other.checkpoint_sha256 == bundle.checkpoint_sha256
            yield race(path.name or str(path), title, _drawing(rival, cfg), same_weights=same)
    if options.reference is not None:
        for dtype, draw, version in _reference(options, bundle, cfg, progress):
            how = "eager FP32" if dtype == TORCH_TYPES[0] else f"eager, autocast to {dtype.upper()}"
            title = f"PyTorch {version} ({how}, weights: {options.reference})"
            name = "PyTorch" if dtype == TORCH_TYPES[0] else f"PyTorch {dtype.upper()}"
            with torch_threads(runtime.threads or machine().physical_cores):
                raced = race(name, title, draw, same_weights=options.reference != RANDOM)
            yield raced


def _drawing(rival: Pipeline, cfg: float) -> Draw:
    return lambda classes, seeds: rival.generate(classes, seeds=seeds, cfg=cfg).tokens


def runtime_title(runtime: Mapping[str, Any]) -> str:
    """What computes, with its version, as `onnxruntime 1.31.1, CPUExecutionProvider`."""
    hint = f", {runtime['hint']}" if "hint" in runtime else ""
    return f"{runtime['backend']} {runtime[runtime['backend']]}, {runtime['provider']}{hint}"


def _reference(
    options: BenchOptions, bundle: Bundle, cfg: float, progress: StageClock
) -> Iterator[tuple[str, Draw, str]]:
    """What draws an image with the PyTorch reference in each type, and the version of PyTorch."""
    progress("loading the PyTorch reference")
    with needs_export_packages("--reference"):
        import torch

        from var_export import live
        from var_export.model.reference import Reference
    from engines.fidelity.speed import RANDOM

    if options.reference == RANDOM:
        reference = Reference.random(bundle.config)
    else:
        reference = live.checkpoint_for(bundle, str(options.reference), **vars(options.parts)).reference()
    sampling = replace(bundle.sampling, cfg=cfg)
    for dtype in options.reference_dtypes:
        autocast = torch.bfloat16 if dtype == "bf16" else None
        yield dtype, live.draw_with(reference, sampling, bundle.max_top_k, autocast=autocast), torch.__version__


def _print(bundle: Bundle, measured: Measured) -> None:
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
