"""What `var-run` and its commands are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from engines.cli.common import POSITIVE, NamedPath, Runtime, check_option, filled_by, option, runtime_options
from engines.errors import UsageError
from engines.files.shard import Shard
from engines.spec.choices import CHECKS, FITS, FORMS, ORDERS, PREVIEWS, TOGETHER
from engines.spec.presets import PRESETS
from engines.spec.sampling import OPTIONS, SamplingOptions

PATH = NamedPath(path_type=Path)
RANDOM = "random"
WRITERS = ("driver", "workers")
"""Who stores the images that a cluster draws."""
_TYPES: dict[str, Any] = {"float": click.FLOAT, "int": click.INT}


class Seed(NamedTuple):
    """The seed of the first image."""

    value: int
    drawn: bool
    """Whether chance chose it."""


class SeedType(click.ParamType):  # type: ignore[type-arg]  # which older versions of click do not have
    """An integer of 64 bits, or `random`: one that chance chooses, short enough to be typed again."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Seed:
        """See `click.ParamType`."""
        if isinstance(value, Seed):
            return value
        if str(value).strip().lower() == RANDOM:
            import secrets

            return Seed(secrets.randbelow(2**32), drawn=True)
        return Seed(click.IntRange(min=0).convert(value, param, ctx), drawn=False)


class ShardType(click.ParamType):  # type: ignore[type-arg]
    """A part of a job, as `3/8`."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """See `click.ParamType`."""
        try:
            return value if isinstance(value, Shard) else Shard.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ValuesType(click.ParamType):  # type: ignore[type-arg]
    """One value of a sampling option, or several with commas."""

    def __init__(self, kind: str) -> None:
        self._one, self.name = _TYPES[kind], kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """See `click.ParamType`."""
        if isinstance(value, tuple):
            return value
        values = tuple(self._one.convert(part.strip(), param, ctx) for part in str(value).split(","))
        return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class Chosen:
    """What was given of the sampling options."""

    one: SamplingOptions = field(default_factory=SamplingOptions)
    """Those with one value for all images."""
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Those with several values, which make a grid."""


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each of `engines.spec.sampling`; what was given of them arrives as `sampling`."""

    def with_sampling(*args: Any, **values: Any) -> Any:
        taken = {each.name: values.pop(each.name) for each in OPTIONS}
        one: Any = {name: value for name, value in taken.items() if isinstance(value, bool)}
        one |= {name: value[0] for name, value in taken.items() if isinstance(value, tuple) and len(value) == 1}
        sweep = {name: value for name, value in taken.items() if isinstance(value, tuple) and len(value) > 1}
        return command(*args, sampling=Chosen(one, sweep), **values)

    decorated: Any = functools.wraps(command)(with_sampling)
    for each in reversed(OPTIONS):
        meaning = f"{each.meaning[0].upper()}{each.meaning[1:]}."
        if each.kind == "bool":
            decorated = click.option(each.flag, is_flag=True, default=None, help=meaning)(decorated)
        else:
            decorated = click.option(each.flag, type=ValuesType(each.kind), help=meaning)(decorated)
    result: Callable[..., Any] = decorated
    return result


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Which images to draw; None where the user left the choice to the bundle."""

    classes: tuple[str, ...] = option(
        "--class",
        multiple=True,
        metavar="CLASS",
        help="Index, label, range such as 0-9, all, or none (no class); repeatable, or with commas.",
    )
    seed: Seed | None = option(
        type=SeedType(),
        metavar=f"INTEGER|{RANDOM}",
        help="Seed of the first image; image k has SEED + k. [default: 0]",
    )
    count: int = option("-n", "--count", type=POSITIVE, default=1, help="Images per class.")
    sampling: Chosen = filled_by(sampling_options, Chosen)
    form: str | None = option(type=click.Choice(FORMS), help="Scale by scale, or all in one graph.")
    preset: str | None = option(
        type=click.Choice(tuple(PRESETS)), help="fid: 50 images of each ImageNet class, as the official FID is taken."
    )
    order: str = option(
        type=click.Choice(ORDERS), default=ORDERS[0], help="The classes in turn, or class after class; the same images."
    )
    shard: Shard | None = option(
        type=ShardType(),
        metavar="K/N",
        help="Every N-th image, from the K-th on: var-export merge joins them.",
    )


def with_preset(request: DrawOptions, names: Sequence[str], given: Container[str]) -> tuple[DrawOptions, Sequence[str]]:
    """What is asked for, with what the preset says of all that was not `given`; and the classes."""
    if request.preset is None:
        return request, names
    preset = PRESETS[request.preset]
    chosen = request.sampling
    one: Any = {name: value for name, value in preset.sampling.items() if name not in chosen.sweep} | chosen.one
    filled = replace(
        request,
        count=request.count if "count" in given else preset.count,
        sampling=Chosen(one, chosen.sweep),
    )
    return filled, names or (preset.classes,)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where images go."""

    out: str | None = option(
        "-o",
        "--out",
        type=NamedPath(path_type=str),
        metavar="PATH",
        help="A file, a folder, or a pattern with {class} {label} {seed} {index}. "
        "[default: var-LABEL-SEED.png, or out/; numbered where another job is there]",
    )
    grid: bool = option(is_flag=True, help="Also one picture with all images; with --out FILE, that picture alone.")
    preview: bool = option(is_flag=True, help="Also the image after each scale, as a strip.")
    preview_as: str | None = option(
        type=click.Choice(PREVIEWS), help="Also the image after each scale: as a strip, or as an animation."
    )
    npz: Path | None = option(
        type=PATH, metavar="FILE", help="All images as one array, arr_0, for FID evaluators; no pictures."
    )
    save_tokens: Path | None = option(
        type=PATH, metavar="FILE", help="Also tokens, uniforms, seeds and classes as an .npz file."
    )
    overwrite: bool = option(is_flag=True, help="Replace the files that this command writes, whoever made them.")

    @property
    def previews(self) -> str | None:
        """One of `engines.spec.choices.PREVIEWS`; None: no previews."""
        return self.preview_as or (PREVIEWS[0] if self.preview else None)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What draws, and how it reports."""

    bundle: Path | None = option(
        type=PATH,
        metavar="BUNDLE",
        help="Bundle folder. [default: the newest in bundles/, else the embedded demo]",
    )
    url: str | None = option(metavar="URL", help="Draw on a Triton server, as triton://HOST:8001.")
    refine: Path | None = option(
        type=PATH,
        metavar="BUNDLE",
        help="Draw the fine scales with this smaller model, which has the same VQ-VAE; with --refine-from.",
    )
    refine_from: int | None = option(type=POSITIVE, metavar="SCALE", help="The first scale that --refine draws.")
    sequential: bool = option(is_flag=True, help="Never hold both models in memory, with --refine.")
    batch: int = option(type=POSITIVE, default=8, help="Images at once, at most.")
    runtime: Runtime = filled_by(runtime_options, Runtime)
    check: str = filled_by(check_option, CHECKS[0])
    """One of `engines.spec.choices.CHECKS`."""
    as_json: bool = option(
        "--json",
        is_flag=True,
        help="One JSON document on stdout: files, timings, memory, versions, settings.",
    )

    @property
    def together(self) -> int:
        """Images that are given to what draws at once."""
        return TOGETHER if self.sequential else self.batch


class RayType(click.ParamType):  # type: ignore[type-arg]
    """The address of a Ray cluster."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.ParamType`."""
        from engines.fleet.cluster import parse_address

        try:
            return parse_address(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """Which cluster draws, in place of this machine."""

    ray: str | None = option(
        type=RayType(),
        is_flag=False,
        flag_value="auto",
        metavar="[ADDRESS|local]",
        help="Draw on a Ray cluster: HOST:PORT, the one that this machine is in, or one of this machine alone.",
    )
    workers: int | None = option(
        type=POSITIVE, help="Workers at most, with --ray. [default: as many as the cluster holds]"
    )
    write_at: str = option(
        type=click.Choice(WRITERS),
        default=WRITERS[0],
        help="Who stores the images, with --ray and --npz: workers, beside that file, on a path that all see.",
    )
    mixed: bool = option(
        is_flag=True, help="With --ray, let workers differ in backend; the images count as another job's."
    )


@dataclass(frozen=True, kw_only=True)
class AreaOptions:
    """Which part of a picture is redrawn, and how the picture becomes the model's square."""

    box: tuple[str, ...] = option(
        multiple=True, metavar="X0,Y0,X1,Y1", help="Redraw this part; pixels, or fractions to 1. Repeatable."
    )
    mask: Path | None = option(
        type=PATH, metavar="PATH", help="Redraw where this picture is white; or a folder with one for each picture."
    )
    boxes: Path | None = option(
        type=PATH,
        metavar="PATH",
        help="Redraw what a detector found: a file of COCO, Ultralytics or YOLO, or a folder of them.",
    )
    detect: Path | None = option(
        type=PATH, metavar="MODEL.onnx", help="Redraw what this detector finds: one that Ultralytics exported."
    )
    objects: tuple[str, ...] = option(
        "--object", multiple=True, metavar="NAME", help="Of what was found, only this class. Repeatable."
    )
    score: float | None = option(
        type=click.FloatRange(0, 1),
        metavar="SCORE",
        help="Of what was found, only from this score on. [default: 0.25 for --detect]",
    )
    grow: float = option(
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SIZE",
        help="Make all of it wider on each side: pixels, or below 1 a fraction of the shorter side.",
    )
    outpaint: bool = option(is_flag=True, help="Keep that part and redraw the rest.")
    fit: str = option(
        type=click.Choice(FITS),
        default=FITS[0],
        help="How a picture becomes square: its middle, squeezed, or with its edges repeated.",
    )
    composite: bool = option(
        "--composite/--no-composite",
        default=True,
        help="Lay what was redrawn over the original, or write the model's square as it is.",
    )
