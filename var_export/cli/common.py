"""What the commands of `var-export` share beyond `engines.cli.common`: checkpoints, bundles, reports, PyTorch.

Nothing here imports more than click: `--help` must not wait for numpy or torch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.cli.common import Command, NamedPath, needs_packages, option, tell
from engines.errors import BackendError, UsageError
from engines.packages import install_command
from engines.spec.choices import LEVELS

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors")
PAGE_SUFFIXES = (".html", ".htm")
REPORT_PACKAGES = ("matplotlib", "jinja2")

FOLDER = NamedPath(file_okay=False, path_type=Path)
# Plain strings: a Path would squeeze the slashes of hf://owner/repo.
CHECKPOINT = NamedPath(path_type=str)
FILE = NamedPath(dir_okay=False, path_type=Path)
LEVEL = click.IntRange(LEVELS[0], LEVELS[-1])

bundle_argument = click.argument("bundle", required=False, type=FOLDER)


def _pairs(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, setting = value.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, such as vae.quant_resi=0.5", param=parameter)
        pairs[key.strip()] = setting.strip()
    return pairs


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """Where the parts of a checkpoint are that its own file lacks: arguments of `load_checkpoint`."""

    vae: str | None = option(type=CHECKPOINT, metavar="FILE")
    key: str | None = option(metavar="NAME", help="Which state dict of a file that holds several, such as ema.")
    config: str | None = option(type=CHECKPOINT, metavar="FILE")
    overrides: dict[str, str] = option(
        "--set", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="As for build."
    )


def _listed(value: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in value.split(",")))


def sizes_option(default: str, help_text: str) -> Callable[[Command], Command]:
    """`--batch` as a list of sizes with commas."""
    return numbers_option("--batch", "batch sizes", default, help_text, default=default)


def numbers_option(
    flag: str, what: str, example: str, help_text: str, *, default: str | None = None
) -> Callable[[Command], Command]:
    """An option that takes several whole numbers above 0 with commas; an empty tuple where it has no default."""

    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
        parts = [] if value is None else _listed(value)
        if not all(part.isdecimal() and int(part) for part in parts):
            raise click.BadParameter(f"{value!r} is no list of {what} such as {example}", param=parameter)
        return tuple(map(int, parts))

    return click.option(flag, default=default, metavar="N,M", callback=parse, help=help_text)


def choices_option(
    flag: str, name: str, choices: Sequence[str], help_text: str, *, default: str | None = None
) -> Callable[[Command], Command]:
    """An option that takes several choices as a list with commas; an empty tuple where it has no default."""

    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
        parts = [] if value is None else _listed(value)
        for part in parts:
            if part not in choices:
                raise click.BadParameter(f"{part!r} is none of {', '.join(choices)}", param=parameter)
        return tuple(parts)

    metavar = f"[{'|'.join(choices)}],..."
    return click.option(flag, name, default=default, metavar=metavar, callback=parse, help=help_text)


def open_bundle(path: Path | None, *, verify: bool = True) -> Bundle:
    """The named bundle, or the default one, saying which."""
    from engines.bundle.bundle import Bundle, default_bundle

    if path is None:
        path, phrase = default_bundle()
        tell(f"using {phrase}")
    return Bundle.open(path, verify=verify)


@contextmanager
def needs_export_packages(
    what: str, extra: str = "export", packages: Sequence[str] = EXPORT_PACKAGES
) -> Iterator[None]:
    """`engines.cli.common.needs_packages`, of what exports unless told otherwise."""
    with needs_packages(what, extra, packages):
        yield


def report_option(flag: str, suffixes: Sequence[str], help_text: str) -> Callable[[Command], Command]:
    """An option that names a file to draw a report in; whether that can be done is known before the work.

    Its callback raises `BackendError` where a package is missing, and `UsageError` where the file has none of
    `suffixes`, lies in a bundle, or in a place that cannot be written.
    """

    def check(_: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
        if file is not None:
            _check_report(parameter.opts[0], file, suffixes)
        return file

    return click.option(flag, type=FILE, metavar="FILE", callback=check, help=help_text)


html_option = report_option(
    "--html", PAGE_SUFFIXES, "Write a page too: one .html file with pictures and charts, for any browser."
)


def _check_report(flag: str, file: Path, suffixes: Sequence[str]) -> None:
    if file.suffix.lower() not in suffixes:
        raise UsageError(f"{flag} writes {', '.join(suffixes)}, not {file.name}")
    parents = [str(folder) for folder in file.absolute().parents]
    if any(os.path.isfile(os.path.join(folder, "manifest.json")) for folder in parents):  # noqa: PTH113, PTH118
        raise UsageError(f"{file} would lie in a bundle, which holds nothing else; choose another place for {flag}")
    # os.path, whose questions are answered with no where a folder may not be searched
    place = next(folder for folder in parents if os.path.exists(folder))  # noqa: PTH110
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):  # noqa: PTH112
        why = "may not be written to" if os.path.isdir(place) else "is no folder"  # noqa: PTH112
        raise UsageError(f"cannot write {file}: {place} {why}")
    for package in REPORT_PACKAGES:  # found, not loaded: a measurement that follows must not count their memory
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"{flag} needs {package}: {install_command('report')}")


def tell_page(file: Path, size: int) -> None:
    """Say where a page is and how many bytes it has."""
    tell(f"page: {file} ({size / 1000:.0f} kB)")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` threads for a while; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
