"""What `build --precision int8` or `int4` and `sensitivity` share: options of quantisation, calibration, the build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.cli.common import POSITIVE, given, option, option_group
from engines.errors import UsageError
from engines.spec.choices import INT8, ONNXRUNTIME, RANGES, STEPWISE, TENSORRT
from var_export.cli.common import FILE, FOLDER, LEVEL

if TYPE_CHECKING:
    from calib.calibration import Calibration
    from calib.choose.options import QuantisationOptions
    from engines.bundle.bundle import Bundle
    from engines.progress import Progress

SAMPLES = 32
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_DRAWN = ("smoothquant", "samples", "classes", "images")  # parameters that decide what a calibration is made from


def _smoothquant(_: click.Context, __: click.Parameter, text: str) -> str | None:
    if text in ("off", "search"):
        return None if text == "off" else text
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1
    if not 0 <= alpha <= 1:
        raise UsageError(f"--smoothquant is search, off, or a number of 0 to 1, not {text!r}")
    return str(alpha)


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers a quantised build quantises."""

    level: int | None = option(
        type=LEVEL,
        help="INT8: 1 convolutions, 2 also qkv, proj, fc1, 3 also fc2, head; INT4: 1 qkv, proj, 2 also fc2, 3 fc1.",
    )
    max_loss: tuple[str, ...] = option(
        multiple=True,
        metavar="FIGURE=BOUND",
        help="Quantise as much as keeps kl=NATS, top1=SHARE, psnr=DB (at least); repeatable. [default: by --level]",
    )
    quantize: tuple[str, ...] = option(
        multiple=True, metavar="PATTERN", help="Layers to quantise all the same; repeatable."
    )
    reduce_range: bool = option(
        is_flag=True, help="Weights of 7 bits, for x86 without VNNI: 0.7 of the time there, a little coarser."
    )
    keep: tuple[str, ...] = option(multiple=True, metavar="PATTERN", help="Layers to leave in float; repeatable.")


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How activations are observed, and how their ranges follow from that."""

    ranges: str = option(type=click.Choice(RANGES), default="mse", help="How activation ranges are set.")
    percentile: float = option(
        type=click.FloatRange(50, 100, min_open=True),
        default=99.99,
        help="Share of the values inside, for --ranges percentile.",
    )
    smoothquant: str | None = option(
        metavar="search|off|ALPHA",
        default="search",
        callback=_smoothquant,
        help="Move outliers into weights.",
    )
    """`search`, a number as text, or None where outliers stay where they are."""
    samples: int = option(type=POSITIVE, default=SAMPLES, help="Images drawn to calibrate.")
    classes: tuple[str, ...] = option(
        multiple=True, metavar="CLASS", help="To draw, as in var-run. [default: spread out]"
    )
    images: Path | None = option(
        type=FOLDER,
        metavar="DIR",
        help="Pictures to calibrate the encoder with. [default: the drawn ones]",
    )
    calibration: Path | None = option(
        type=FILE,
        metavar="FILE",
        help="Where to keep it; taken from there if it exists. [default: NAME.calibration.json beside the bundle]",
    )


calibration_options = option_group("calibrating", CalibrationOptions)


def quantisation_options(
    context: click.Context,
    calibrating: CalibrationOptions,
    target: str,
    layers: LayerOptions | None = None,
    form: str = STEPWISE,
    precision: str = INT8,
) -> QuantisationOptions:
    """The options as `calib` takes them; `target` may be any of `TARGETS`. Raises `UsageError`."""
    from calib.choose.options import QuantisationOptions
    from calib.choose.ranges import Ranges
    from calib.choose.selection import Bounds

    options = QuantisationOptions(
        precision=precision,
        target=ONNXRUNTIME if target == ONNXRUNTIME else TENSORRT,
        form=form,
        ranges=Ranges(method=calibrating.ranges, percentile=calibrating.percentile),
    )
    if layers is None:
        return options
    bounds = Bounds.parse(layers.max_loss)
    if bounds.transformer and "level" in given(context):
        raise UsageError("--max-loss chooses the transformer's layers itself; leave out --level")
    if layers.reduce_range and options.target != ONNXRUNTIME:
        raise UsageError("--reduce-range is for CPUs, and NVIDIA's GPUs multiply exactly: leave it out")
    return replace(
        options,
        level=layers.level,
        bounds=bounds,
        include=layers.quantize,
        exclude=layers.keep,
        reduce_range=layers.reduce_range,
    )


def calibration_of(
    context: click.Context,
    base: Bundle,
    options: CalibrationOptions,
    folder: Path,
    *,
    threads: int | None,
    progress: Progress,
) -> tuple[Callable[[], Calibration], Path]:
    """What reads or makes the calibration of a float bundle, and the file that it is kept in.

    It lies in `folder` unless `options` name one; `context` tells whether the user said what to calibrate with.

    Raises `UsageError` for an unknown class, and where there are no pictures; so does what is returned, where the file
    is of another model, or the activations cannot be calibrated with.
    """
    from calib.observe.collect import Requests
    from calib.quantise import calibrate
    from engines.bundle.labels import ClassNames

    classes = ClassNames(base.config.transformer.num_classes, base.labels).parse(options.classes)
    images = _images(options.images) if options.images else ()
    requests = Requests.spread(base.config, options.samples, classes or None, images, options.smoothquant)
    file = options.calibration or folder / f"{base.name}.calibration.json"
    reuse_any = options.calibration is not None and not given(context).keys() & set(_DRAWN)
    return partial(calibrate, base, requests, file, reuse_any=reuse_any, threads=threads, progress=progress), file


def _images(folder: Path) -> list[Path]:
    """Raises `UsageError` where there is none."""
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error
    if not found:
        raise UsageError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}) to calibrate the encoder with")
    return found
