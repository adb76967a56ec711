"""What `var-run` was asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engines.cli.common import Runtime
from engines.spec.sampling import OPTIONS, SamplingOptions

_TYPES = {"float": float, "int": int}


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each of `engines.spec.sampling`; what was given of them arrives as `sampling`."""

    def with_sampling(*args: Any, **values: Any) -> Any:
        taken = {option.name: values.pop(option.name) for option in OPTIONS}
        sampling: Any = {name: value for name, value in taken.items() if value is not None}
        return command(*args, sampling=sampling, **values)

    decorated: Any = functools.wraps(command)(with_sampling)
    for option in reversed(OPTIONS):
        meaning = f"{option.meaning[0].upper()}{option.meaning[1:]}."
        if option.kind == "bool":
            decorated = click.option(option.flag, is_flag=True, default=None, help=meaning)(decorated)
        else:
            decorated = click.option(option.flag, type=_TYPES[option.kind], help=meaning)(decorated)
    result: Callable[..., Any] = decorated
    return result


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `var-run`, parsed; None where the user left the choice to the bundle."""

    classes: tuple[str, ...]
    seed: int
    count: int
    sampling: SamplingOptions
    """What was given of the sampling options."""
    engine: Path | None
    url: str | None
    form: str | None
    batch: int
    out: str | None
    grid: bool
    preview: bool
    npz: Path | None
    save_tokens: Path | None
    tokens: Path | None
    reconstruct: Path | None
    edit: Path | None
    box: tuple[str, ...]
    mask: Path | None
    boxes: Path | None
    box_class: tuple[str, ...]
    box_score: float | None
    outpaint: bool
    fit: str
    composite: bool
    list_classes: bool
    runtime: Runtime
    as_json: bool
    overwrite: bool
