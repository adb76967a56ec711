"""The half of `var-export build --precision int8` that is about quantisation: its options, calibration, the build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.errors import UsageError
from var_export.cli.common import POSITIVE, is_bundle, needs_export_packages

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from var_export.assembly import Built
    from var_export.cli.progress import Progress
    from var_export.quantize import Int8Options

Command = TypeVar("Command", bound=Callable[..., Any])
INT8 = "int8"
RANGES = ("minmax", "percentile", "entropy", "mse")
SAMPLES = 32
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NAMES = ("level", "quantize", "keep", "ranges", "percentile", "smooth", "samples", "classes", "images", "calibration")
_OPTIONS = (
    click.option(
        "--level",
        type=click.IntRange(1, 3),
        default=2,
        show_default=True,
        help="How much is INT8: 1 convolutions; 2 also qkv, proj, fc1; 3 also fc2 and head.",
    ),
    click.option("--quantize", multiple=True, metavar="PATTERN", help="Layers to quantise all the same; repeatable."),
    click.option("--keep", multiple=True, metavar="PATTERN", help="Layers to leave in float; repeatable."),
    click.option(
        "--ranges", type=click.Choice(RANGES), default="mse", show_default=True, help="How activation ranges are set."
    ),
    click.option(
        "--percentile",
        type=click.FloatRange(50, 100, min_open=True),
        default=99.99,
        show_default=True,
        help="Share of the values inside, for --ranges percentile.",
    ),
    click.option(
        "--smooth", metavar="search|off|ALPHA", default="search", show_default=True, help="Move outliers into weights."
    ),
    click.option("--samples", type=POSITIVE, default=SAMPLES, show_default=True, help="Images drawn to calibrate."),
    click.option("--classes", multiple=True, metavar="CLASS", help="To draw, as in var-run. [default: spread out]"),
    click.option(
        "--images",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Pictures to calibrate the encoder with. [default: the drawn ones]",
    ),
    click.option(
        "--calibration",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Where the calibration is kept; taken from there if it exists. [default: beside the bundle]",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of quantisation, as given."""

    options: Int8Options
    smooth: str | None
    samples: int
    classes: tuple[str, ...]
    images: Path | None
    calibration: Path | None
    chosen: bool
    """Whether the user said what to calibrate with."""


def int8_options(command: Command) -> Command:
    """The options of an INT8 build, which `take_int8_values` collects."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_int8_values(context: click.Context, values: dict[str, Any], target: str) -> Wishes | None:
    """Take the values of `int8_options` out of `values`; None for another precision. Raises `UsageError`."""
    taken = {name: values.pop(name) for name in NAMES}
    given = [name for name in NAMES if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if values["precision"] != INT8:
        if given:
            raise UsageError(f"--{given[0]} needs --precision int8")
        return None
    if values["form"] != "stepwise":
        raise UsageError(f"INT8 bundles are stepwise in this version; leave out --form {values['form']}")
    with needs_export_packages("quantising", INT8 if is_bundle(values["checkpoint"]) else "export"):
        from calib.quantize import Ranges
        from var_export.quantize import Int8Options

    return Wishes(
        options=Int8Options(
            target="onnxruntime" if target == "onnxruntime" else "tensorrt",
            level=taken["level"],
            include=taken["quantize"],
            exclude=taken["keep"],
            ranges=Ranges(method=taken["ranges"], percentile=taken["percentile"]),
        ),
        smooth=_smoothing(taken["smooth"]),
        samples=taken["samples"],
        classes=taken["classes"],
        images=taken["images"],
        calibration=taken["calibration"],
        chosen=any(name in given for name in ("smooth", "samples", "classes", "images")),
    )


def quantized(
    base: Bundle, out: Path, wishes: Wishes, *, force: bool, threads: int | None, progress: Progress
) -> Built:
    """Calibrate `base` and build the INT8 bundle at `out`."""
    from calib.calibration import Calibration
    from calib.collect import Requests
    from engines.labels import ClassNames
    from var_export.quantize import calibrate, quantize_bundle

    classes = ClassNames(base.config.transformer.num_classes, base.labels).parse(wishes.classes)
    requests = Requests.spread(
        base.config, wishes.samples, classes or None, _images(wishes.images) if wishes.images else (), wishes.smooth
    )
    file = wishes.calibration or out.parent / f"{base.name}.calibration.json"
    reuse_any = wishes.calibration is not None and not wishes.chosen

    def calibrated() -> Calibration:
        return calibrate(base, requests, file, reuse_any=reuse_any, threads=threads, progress=progress)

    return quantize_bundle(base, out, wishes.options, calibrated, force=force, threads=threads, progress=progress)


def _smoothing(text: str) -> str | None:
    if text == "off":
        return None
    if text == "search":
        return text
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1
    if not 0 <= alpha <= 1:
        raise UsageError(f"--smooth is search, off, or a number of 0 to 1, not {text!r}")
    return str(alpha)


def _images(folder: Path) -> list[Path]:
    """Raises `UsageError` where there is none."""
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error
    if not found:
        raise UsageError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}) to calibrate the encoder with")
    return found
