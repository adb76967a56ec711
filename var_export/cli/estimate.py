"""`var-export estimate`: whether a model fits a device, and the most images per second it could draw there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import POSITIVE, Figure, json_option, json_out, option_group, print_table, show
from engines.errors import UsageError
from engines.spec import policy
from engines.spec.choices import FORMS, INT8, ONNXRUNTIME, PRECISIONS, QUANTISED, STEPWISE, TENSORRT
from engines.words import counted, duration, mebibytes
from var_export.cli.common import CHECKPOINT, LEVEL, CheckpointParts, needs_export_packages

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.sizing.devices import Device
    from engines.sizing.estimate import Estimate
    from engines.sizing.roofline import Bound
    from engines.sizing.workload import Workload

TIGHT = 0.9  # of the usable memory: above it, what is not counted may not fit any more
MIB = 2**20


@click.command()
@click.option(
    "--model",
    type=CHECKPOINT,
    metavar="NAME|CHECKPOINT|BUNDLE",
    help="d16, d20, d24, d30 (256 px), d36 (512 px), demo; a checkpoint, as for build; or a bundle folder.",
)
@click.option(
    "--device",
    multiple=True,
    metavar="NAME",
    help="Such as orin-nano-8gb; repeatable. cpu: the machine at hand. [default: all GPUs]",
)
@click.option("--images", type=POSITIVE, metavar="N", help="The least hours of so many images, with --workers.")
@click.option("--workers", metavar="NxDEVICE", help="Who draws --images: 8xl4 are eight, of var-run --ray or shards.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="[default: of the bundle, else fp16; cpu: fp32]")
@click.option("--level", type=LEVEL, help="Of int8 and int4, as for build. [default: of the bundle, else as of build]")
@click.option("--batch", type=POSITIVE, default=1, help="Images at once.")
@click.option(
    "--cfg", type=click.FloatRange(min=0), help="Guidance; above 0 an image owns two rows. [default: of the model]"
)
@click.option("--no-guidance", is_flag=True, help="As --cfg 0: one row per image.")
@click.option("--form", type=click.Choice(FORMS), help="[default: stepwise, or what the bundle has]")
@click.option("--tokens-only", is_flag=True, help="Without the decoder, as published throughputs often are.")
@option_group(
    "parts",
    CheckpointParts,
    vae="The VQ-VAE of a checkpoint, as for build.",
    config="The config.json of a checkpoint, as for build.",
)
@click.option("--list-devices", is_flag=True, help="The devices that are known; --json has the source of each figure.")
@json_option
def estimate(
    device: tuple[str, ...],
    list_devices: bool,
    as_json: bool,
    images: int | None,
    workers: str | None,
    **values: Any,
) -> None:
    """Tell whether a model fits a device, and the most images per second it could draw there.

    Bytes and operations are counted from the graphs: nothing needs to be downloaded, built or at hand. The speed
    is a bound that nothing exceeds, not a prediction.
    """
    if list_devices:
        _list_devices(as_json)
        return
    from engines.sizing.devices import CPU, devices, find
    from engines.sizing.estimate import Estimate

    if (images is None) != (workers is None):
        raise click.UsageError("--images and --workers go together: --images 50000 --workers 8xl4")
    if images is not None and workers is not None:
        if device:
            raise click.UsageError("--workers names the device: leave --device out")
        _estimate_job(images, workers, as_json, values)
        return
    chosen = {found.name: found for found in map(find, device)}
    if CPU in chosen and len(chosen) > 1:
        raise click.UsageError(f"--device {CPU} stands alone: it runs other graphs than GPUs do")
    workload = _workload(CPU in chosen, **values)
    if not chosen:
        chosen = {CPU: find(CPU)} if workload.target == ONNXRUNTIME else dict(devices())
    estimates = [Estimate(workload.on(each), each) for each in chosen.values()]
    single = estimates[0] if len(estimates) == 1 else None
    if single is not None:
        single.device.check(workload.precision)  # one device that cannot is a mistake; in a table it is a row
    if as_json:
        entries = [each.to_dict() for each in estimates]
        json_out(workload.to_dict() | (entries[0] if single is not None else {"devices": entries}))
    elif single is not None:
        _print(single)
    else:
        _compare(workload, estimates)


def _estimate_job(images: int, workers: str, as_json: bool, values: dict[str, Any]) -> None:
    """Print the least hours of many images on many devices."""
    from engines.sizing.estimate import Estimate
    from engines.sizing.job import JobEstimate, parse_workers

    count, device = parse_workers(workers)
    workload = _workload(False, **values)
    device.check(workload.precision)
    each = Estimate(workload.on(device), device)
    job = JobEstimate(each, images, count)
    if as_json:
        json_out(workload.to_dict() | each.to_dict() | {"job": job.to_dict()})
        return
    show(_headline(each.workload))
    show(f"{images} images on {count} x {_titled(device)}: {_verdict(each)}\n")
    show(
        f"at least {duration(job.seconds)}, bound by {job.bound_by}: {job.workers * each.images_per_s:.3g} images/s at "
        f"most, and the driver of var-run --ray takes {duration(job.driver_seconds)} meanwhile\n"
        "a bound, not a prediction: nothing is faster at the rated clocks"
    )


def _list_devices(as_json: bool) -> None:
    from engines.sizing.devices import devices

    known = devices().values()
    if as_json:
        json_out({"devices": [device.to_dict() for device in known]})
        return
    rows = [
        (
            device.name,
            _titled(device),
            device.compute_capability,
            round(device.memory_bytes / MIB),
            round(device.usable_bytes / MIB),
            Figure(device.bandwidth / 1e9, ".1f"),
            *(_tera(device.peaks.get(kind)) for kind in ("fp32", "fp16", "fp16_fast", "bf16", "int8")),
            ", ".join(device.targets),
        )
        for device in known
    ]
    headers = ("name", "device", "SM", "MiB", "usable", "GB/s", "fp32", "fp16", "fp16 fast", "bf16", "int8", "targets")
    print_table(rows, headers)
    show("\nTFLOP/s, dense, at rated clocks; fp16 fast: accumulated in FP16. --json has the source of each figure.")


def _tera(flops: float | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:.1f}"


def _titled(device: Device) -> str:
    return f"{device.title}, {device.mode}" if device.mode else device.title


def _workload(
    on_cpu: bool,
    *,
    model: str | None,
    parts: CheckpointParts,
    precision: str | None,
    level: int | None,
    batch: int,
    cfg: float | None,
    no_guidance: bool,
    form: str | None,
    tokens_only: bool,
) -> Workload:
    """What the options ask for, of a name, a bundle or a checkpoint; None is what that says, or the usual."""
    from engines.bundle.bundle import Bundle
    from engines.bundle.manifest import is_bundle
    from engines.sizing import models
    from engines.sizing.workload import Workload
    from engines.spec.sampling import Sampling

    if no_guidance and cfg:
        raise click.UsageError("--no-guidance and --cfg contradict each other")
    if model is None:
        raise click.UsageError(f"say which model: --model {', '.join(models.NAMES)}, a checkpoint or a bundle")
    usual: dict[str, Any] = {"precision": "fp32" if on_cpu else "fp16", "target": ONNXRUNTIME if on_cpu else TENSORRT}
    sampling = Sampling()
    if model in models.NAMES and not Path(model).exists():
        usual["config"] = models.official(model)
    elif is_bundle(Path(model)):
        bundle = Bundle.open(model, verify=False)
        as_it_is = precision in (None, bundle.precision) and level is None
        usual, sampling = usual | _of_bundle(bundle, as_it_is), bundle.sampling
    else:
        usual["config"], sampling = _read_checkpoint(model, parts)
    asked = {"precision": precision, "level": level, "form": form}
    usual |= {name: value for name, value in asked.items() if value is not None}
    if level is not None and usual["precision"] not in QUANTISED:
        raise UsageError("--level needs --precision int8 or int4")
    guided = (sampling.cfg if cfg is None else cfg) > 0 and not no_guidance
    return Workload(**usual, images=batch, guidance=guided, tokens_only=tokens_only)


def _of_bundle(bundle: Bundle, as_it_is: bool) -> dict[str, Any]:
    """What a bundle says of a workload; `as_it_is`: its quantised layers too."""
    from engines.bundle.inspection import quantised_layers

    shared = {name: getattr(bundle, name) for name in ("config", "precision", "smooth", "max_top_k")}
    shared["form"] = bundle.forms[0]
    if bundle.precision in QUANTISED and as_it_is:
        shared |= {"target": bundle.target, "ways": {layer.name: layer.way for layer in quantised_layers(bundle)}}
    return shared


def _read_checkpoint(name: str, parts: CheckpointParts) -> tuple[Any, Any]:
    """Configuration and recommended sampling. Nothing is loaded for a name that cannot be a checkpoint."""
    from engines.sizing import models

    if "://" not in name and not Path(name).exists():
        raise UsageError(f"there is no model or file {name!r}; known names are {', '.join(models.NAMES)}")
    with needs_export_packages("a checkpoint"):
        from var_export.checkpoint.labels import NONE
        from var_export.checkpoint.load import load_checkpoint
    checkpoint = load_checkpoint(name, **vars(parts), labels=NONE)
    return checkpoint.config, checkpoint.sampling


def _headline(load: Workload) -> str:
    side, images, rows = load.config.image_size, counted(load.images, "image"), counted(load.rows, "row")
    guided = "with guidance" if load.guidance else "without guidance"
    tail = ", tokens only" if load.tokens_only else ""
    return (
        f"{load.config.name}, {side}x{side} pixels, {_precision(load)}, {load.form}, {images} at once {guided} "
        f"({rows}){tail}"
    )


def _precision(load: Workload) -> str:
    if load.high == load.precision:
        return load.precision
    which = f"level {load.chosen_level}" if load.ways is None else "as the bundle"
    return f"{load.precision} ({which}; the rest {load.high})"


def _print(estimate: Estimate) -> None:
    load, device = estimate.workload, estimate.device
    show(_headline(load))
    figures = "this machine"
    if not device.is_cpu:
        kinds = dict.fromkeys((INT8 if load.precision in QUANTISED else load.precision, load.high, "fp32"))
        units = {kind: "TOP/s" if kind == INT8 else "TFLOP/s" for kind in kinds}
        peaks = ", ".join(f"{_tera(device.peak(kind))} {units[kind]} {kind}" for kind in kinds)
        figures = f"{device.bandwidth / 1e9:.1f} GB/s, {peaks}"
    show(f"on {_titled(device)}: {figures}; runs {', '.join(device.targets)}\n")
    print_table([(what, Figure(size / MIB, ".1f")) for what, size in _memory_rows(estimate)], ("memory", "MiB"))
    show(f"\n{_verdict(estimate)}\n")
    if device.is_cpu:
        show("no bound: the peaks of this CPU are not known; var-export bench measures on it")
        return
    sides = {f"scale {i}": f"{side}x{side}" for i, side in enumerate(load.config.patch_nums)}
    calls = [_call_row([call], call.work.name, sides.get(call.work.name, ""), call.bound_by) for call in estimate.calls]
    total = _call_row(estimate.calls, "all", "", estimate.bound_by)
    print_table([*calls, total], ("call", "map", "GFLOP", "MiB moved", "least ms", "bound by"))
    show(
        f"\nat most {estimate.images_per_s:.3g} images/s, bound by {estimate.bound_by}\n"
        "a bound, not a prediction: no run of these graphs, one batch after another, is faster at the rated clocks"
    )
    exact = device.peaks[load.high]
    if device.peak(load.high) > exact:
        show(f"with FP16 accumulators; a runtime that accumulates in FP32 has {_tera(exact)} TFLOP/s")
    if load.form == STEPWISE:
        show(f"classes not drawn before take {estimate.cond.seconds * 1e3:.3f} ms more at least, once each")


def _memory_rows(estimate: Estimate) -> list[tuple[str, int]]:
    memory, device, high = estimate.memory, estimate.device, estimate.workload.high
    ways = {
        policy.STATIC: "int8, static ranges",
        policy.PER_TOKEN: "int8, a range per token",
        policy.PER_BLOCK: "int8, a range per block of a token",
        policy.FOUR_BITS: "int4, a range per block of weights",
        policy.PER_CLASS: "int8, a row per class",
        policy.FLOAT: high,
    }
    by_way = memory.by_way.items() if high != estimate.workload.precision else ()
    rows = [
        ("weights", memory.weights),
        ("  transformer", memory.transformer),
        ("  conditioning", memory.conditioning),
        ("  decoder", memory.decoder),
        ("  constants of the scales", memory.scale_constants),
        *((f"  of these, layers in {ways[way]}", size) for way, size in by_way),
        ("KV cache", memory.kv_cache),
        ("buffers of the loop", memory.loop_buffers),
        ("activations of a step", memory.step_activations),
        ("activations of the decoder (instead)", memory.decoder_activations),
        ("counted", memory.counted),
        ("allowance for the runtime", memory.allowance),
        ("needed", memory.total),
        (f"usable of {mebibytes(device.memory_bytes)}", estimate.usable_bytes),
    ]
    return [row for row in rows if row[1]]


def _verdict(estimate: Estimate) -> str:
    left = estimate.usable_bytes - estimate.memory.total
    largest = f"the largest batch that fits is {estimate.largest_batch}"
    if estimate.fits:
        tight = estimate.memory.total > TIGHT * estimate.usable_bytes
        return f"fits, {mebibytes(left)} left{' (tight: not everything is counted)' if tight else ''}; {largest}"
    if estimate.remedies:
        bare = " (the counted bytes alone would fit)" if estimate.memory.counted <= estimate.usable_bytes else ""
        helps = ", ".join(estimate.remedies)
        return f"does not fit, {mebibytes(-left)} too much{bare}; any of these helps: {helps}"
    return f"does not fit, {mebibytes(-left)} too much, at no batch; a smaller model or a larger device is needed"


def _call_row(calls: list[Bound], name: str, side: str, bound_by: str) -> tuple[object, ...]:
    works = [call.work for call in calls]
    flops = sum(sum(work.flops.values()) for work in works)
    moved = sum(sum(work.read.values()) + sum(work.written.values()) for work in works)
    seconds = sum(call.seconds for call in calls)
    return name, side, Figure(flops / 1e9, ".1f"), Figure(moved / MIB, ".1f"), Figure(seconds * 1e3, ".3f"), bound_by


def _compare(load: Workload, estimates: list[Estimate]) -> None:
    show(_headline(load))
    needed = estimates[0].memory
    show(f"needs {mebibytes(needed.total)}, {mebibytes(needed.weights)} of it weights\n")
    rows = []
    for estimate in estimates:
        device = estimate.device
        able = device.supports(load.precision)
        fits = ("yes" if estimate.fits else "no") if able else f"no {load.precision}"
        speed: Sequence[object] = "---"
        if able:
            speed = (Figure(estimate.images_per_s, ".3g"), Figure(estimate.seconds * 1e3, ".1f"), estimate.bound_by)
        first = (device.name, mebibytes(estimate.usable_bytes), fits, estimate.largest_batch)
        rows.append((*first, *speed, ", ".join(device.targets)))
    headers = ("device", "usable", "fits", "largest batch", "images/s at most", "least ms", "bound by", "targets")
    print_table(rows, headers)
    show("\nbounds, not predictions: nothing is faster at the rated clocks. --device NAME shows the parts.")
