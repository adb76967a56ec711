"""What `build --precision int8` and `sensitivity` share: the options of quantisation, calibration, the build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.errors import UsageError
from engines.spec.choices import DEFAULT_LEVEL, INT8, LEVELS, ONNXRUNTIME, RANGES, TENSORRT
from var_export.cli.common import POSITIVE, is_bundle, needs_export_packages

if TYPE_CHECKING:
    from calib.calibration import Calibration
    from calib.judge.assembly import Built
    from calib.rewrite.graphs_of_bundle import Int8Options
    from engines.bundle.bundle import Bundle
    from var_export.cli.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
SAMPLES = 32
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CALIBRATION_NAMES = ("ranges", "percentile", "smoothquant", "samples", "classes", "images", "calibration")
NAMES = ("level", "max_loss", "quantize", "keep", *CALIBRATION_NAMES)
_CHOICE_OPTIONS = (
    click.option(
        "--level",
        type=click.IntRange(LEVELS[0], LEVELS[-1]),
        default=DEFAULT_LEVEL,
        show_default=True,
        help="How much is INT8: 1 convolutions; 2 also qkv, proj, fc1; 3 also fc2 and head.",
    ),
    click.option(
        "--max-loss",
        multiple=True,
        metavar="FIGURE=BOUND",
        help="Quantise as much as keeps kl=NATS, top1=SHARE, psnr=DB (at least); repeatable. [default: by --level]",
    ),
    click.option("--quantize", multiple=True, metavar="PATTERN", help="Layers to quantise all the same; repeatable."),
    click.option("--keep", multiple=True, metavar="PATTERN", help="Layers to leave in float; repeatable."),
)
_CALIBRATION_OPTIONS = (
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
        "--smoothquant",
        metavar="search|off|ALPHA",
        default="search",
        show_default=True,
        help="Move outliers into weights.",
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
    smoothquant: str | None
    samples: int
    classes: tuple[str, ...]
    images: Path | None
    calibration: Path | None
    chosen: bool
    """Whether the user said what to calibrate with."""


def int8_options(command: Command) -> Command:
    """The options of an INT8 build, which `take_int8_values` collects."""
    return _with(command, (*_CHOICE_OPTIONS, *_CALIBRATION_OPTIONS))


def calibration_options(command: Command) -> Command:
    """Those of them that are about ranges and calibration, which `calibration_wishes` collects."""
    return _with(command, _CALIBRATION_OPTIONS)


def _with(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
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
    with needs_export_packages("quantising", INT8 if is_bundle(values["checkpoint"]) else "export"):
        from calib.choose.selection import Bounds
        from calib.rewrite.graphs_of_bundle import Int8Options

    bounds = Bounds.parse(taken["max_loss"])
    if bounds.transformer and "level" in given:
        raise UsageError("--max-loss chooses the transformer's layers itself; leave out --level")
    options = Int8Options(
        target=_graphs_for(target),
        form=values["form"],
        level=taken["level"],
        bounds=bounds,
        include=taken["quantize"],
        exclude=taken["keep"],
    )
    return calibration_wishes(context, taken, options)


def calibration_wishes(context: click.Context, taken: Mapping[str, Any], options: Int8Options) -> Wishes:
    """The values of `calibration_options`; ranges go into `options`. Raises `UsageError`."""
    from calib.rewrite.quantize import Ranges

    default = click.core.ParameterSource.DEFAULT
    requested = ("smoothquant", "samples", "classes", "images")
    return Wishes(
        options=replace(options, ranges=Ranges(method=taken["ranges"], percentile=taken["percentile"])),
        smoothquant=_alpha(taken["smoothquant"]),
        samples=taken["samples"],
        classes=taken["classes"],
        images=taken["images"],
        calibration=taken["calibration"],
        chosen=any(context.get_parameter_source(name) is not default for name in requested),
    )


def _graphs_for(target: str) -> str:
    """Both of NVIDIA's products take the same graphs."""
    return ONNXRUNTIME if target == ONNXRUNTIME else TENSORRT


class CalibrationSource:
    """Where a bundle's calibration comes from, by the user's wishes; called, it is read or made."""

    def __init__(self, base: Bundle, wishes: Wishes, folder: Path, threads: int | None, progress: Progress) -> None:
        """Args: folder: where the file is kept unless a wish says so. Raises `UsageError`."""
        from calib.observe.collect import Requests
        from engines.bundle.labels import ClassNames

        classes = ClassNames(base.config.transformer.num_classes, base.labels).parse(wishes.classes)
        images = _images(wishes.images) if wishes.images else ()
        self._requests = Requests.spread(base.config, wishes.samples, classes or None, images, wishes.smoothquant)
        self.file = wishes.calibration or folder / f"{base.name}.calibration.json"
        self._base, self._threads, self._progress = base, threads, progress
        self._reuse_any = wishes.calibration is not None and not wishes.chosen

    def __call__(self) -> Calibration:
        """Raises `UsageError` where the file is of another model, or the activations cannot be calibrated with."""
        from calib.quantise import calibrate

        return calibrate(
            self._base,
            self._requests,
            self.file,
            reuse_any=self._reuse_any,
            threads=self._threads,
            progress=self._progress,
        )


def quantized(
    base: Bundle, out: Path, wishes: Wishes, *, force: bool, threads: int | None, progress: Progress
) -> Built:
    """Calibrate `base` and build the INT8 bundle at `out`."""
    from calib.judge.sensitivity import sensitivity_file
    from calib.quantise import quantize_bundle

    calibrated = CalibrationSource(base, wishes, out.parent, threads, progress)
    return quantize_bundle(
        base,
        out,
        wishes.options,
        calibrated,
        sensitivity=sensitivity_file(calibrated.file, wishes.options.target),
        force=force,
        threads=threads,
        progress=progress,
    )


def _alpha(text: str) -> str | None:
    if text == "off":
        return None
    if text == "search":
        return text
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1
    if not 0 <= alpha <= 1:
        raise UsageError(f"--smoothquant is search, off, or a number of 0 to 1, not {text!r}")
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
